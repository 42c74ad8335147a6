/* A + alpha S(B - C), in doubles, for a KIND of processor: S is the median over 3 neighbours along each axis, then a
   Gaussian along one axis after another. See `struct smooth` for how a row lies here. */

#define BY(NAME) JOIN(NAME, by, KIND)

TARGET static void BY(sort)(const uint16_t *network, double lists[][SPAN]) {
    const uint16_t *pair = network + 2;
    for (int i = 0; i < network[0]; i++, pair += 2) BY(compare)(lists[pair[0]], lists[pair[1]]);
}

/* Three sorted lists made one, SPAN of them side by side, of which `width` are wanted: a network sorts the first two,
   unless they are the same, and another adds the third. The last stage takes of the first two what may be the median:
   it is the least of what is greater, one of these or what stands opposite in the third. A list's values are `stride`
   from each other, the result's `apart`. */
TARGET static void BY(merge)(const uint16_t *network, const double **near, int each, long stride, double *to,
                             long apart, long width) {
    double lists[LONGEST][SPAN];
    const uint16_t *wires = network + 2 + 2 * network[0];
    const int last = is_last(network, each);
    if (near[1] == near[2]) near[2] = near[0], near[0] = near[1];
    const int twice = near[0] == near[1];
    for (int i = 0; i < 2 * each && !(last && twice); i++)
        if (twice) memcpy(lists[wires[i]], near[0] + i / 2 * stride, sizeof *lists);
        else memcpy(lists[i], near[i / each] + i % each * stride, sizeof *lists);
    if (!twice) BY(sort)(network, lists);
    if (last) {
        double least[SPAN];
#define FIRST(I) (twice ? near[0] + (each / 2 + (I)) / 2 * stride : lists[wires[I]])
        memcpy(least, FIRST(each), sizeof least);
        for (int i = 0; i < each; i++) BY(decide)(FIRST(i), near[2] + (each - 1 - i) * stride, least);
#undef FIRST
        memcpy(to, least, width * sizeof(double));
        return;
    }
    for (int i = 0; i < each; i++) memcpy(lists[2 * each + i], near[2] + i * stride, sizeof *lists);
    network = next_network(network), wires = network + 2 + 2 * network[0];
    BY(sort)(network, lists);
    for (int i = 0; i < 3 * each; i++) memcpy(to + i * apart, lists[wires[i]], width * sizeof(double));
}

/* A row's differences, each sorted with its neighbours in the row. */
TARGET static void BY(differ)(const struct smooth *own, const struct term *term, long at) {
    const long left = own->low ? 1 : 0, right = own->high < own->wide ? 1 : 0, width = own->high - own->low;
    const long start = ((at - own->from) * own->wide + own->low - left) * own->planes;
    double *one = own->row, *other = own->spare, *to = own->padded + 1;
    JOIN(row, F64, KIND)(term + 1, start, one, (left + width + right) * own->planes);
    JOIN(row, F64, KIND)(term + 2, start, other, (left + width + right) * own->planes);
    for (long p = 0; p < own->planes; p++, one++, other++) {
        for (long i = 0; i < left + width + right; i++) /* plus 0: two zeros of different signs would have no order */
            to[i - left] = one[i * own->planes] - other[i * own->planes] + 0.0;
        if (!left) to[-1] = to[0];
        if (!right) to[width] = to[width - 1];
        for (long from = 0; from < width; from += SPAN) {
            const double *near[3] = {to + from - 1, to + from, to + from + 1};
            double *sorted = own->sorted[at % 3] + p * width + from;
            BY(merge)(own->networks, near, 1, 0, sorted, own->room, MIN(SPAN, width - from));
        }
    }
}

/* The medians of a row, of SPAN columns from one on. */
TARGET static void BY(median)(const struct smooth *own, long at, long from) {
    const long columns = own->high - own->low, width = MIN(SPAN, columns - from);
    const uint16_t *network = next_stage(own->networks);
    double *lists = own->lists[0], *longer = own->lists[1], *to = own->medians[at % 9] + from;
    for (long p = 0; p < own->planes; p++) {
        const double *near[3];
        for (int k = 0; k < 3; k++)
            near[k] = own->sorted[mirrored(at + k - 1, own->rows) % 3] + p * columns + from;
        if (is_last(network, 3)) BY(merge)(network, near, 3, own->room, to + p * columns, 0, width);
        else BY(merge)(network, near, 3, own->room, lists + p * 9 * SPAN, SPAN, SPAN);
    }
    for (int axis = 2, each = 9; axis < own->axes; axis++) {
        if (own->shape[axis] == 1) continue; /* all neighbours are the same */
        network = next_stage(network);
        for (long p = 0; p < own->planes; p++) {
            const double *near[3];
            for (int k = 0; k < 3; k++) near[k] = lists + beside(own, p, axis, k - 1) * each * SPAN;
            if (is_last(network, each)) BY(merge)(network, near, each, SPAN, to + p * columns, 0, width);
            else BY(merge)(network, near, each, SPAN, longer + p * 3 * each * SPAN, SPAN, SPAN);
        }
        double *done = lists;
        lists = longer, longer = done, each *= 3;
    }
}

/* A Gaussian of what is up to TAPS to both sides, as scipy adds it up. */
TARGET static void BY(blur)(const double *const *near, const double *weights, double *restrict to, long count) {
    for (long i = 0; i < count; i++) {
        double sum = near[TAPS][i] * weights[0];
        for (int k = TAPS; k; k--) sum += (near[TAPS - k][i] + near[TAPS + k][i]) * weights[k];
        to[i] = sum;
    }
}

/* A row's smoothed differences; they hold until the next. */
TARGET static const double *BY(smoothed)(const struct smooth *own, long at) {
    const long columns = own->high - own->low, width = own->end - own->first;
    const double *near[2 * TAPS + 1];
    double *row = own->row, *spare = own->spare;
    for (int k = -TAPS; k <= TAPS; k++) near[TAPS + k] = own->medians[mirrored(at + k, own->rows) % 9];
    if (own->axes) BY(blur)(near, own->weights, row, own->planes * columns);
    else memcpy(row, near[TAPS], sizeof *row);
    for (long p = 0; own->axes > 1 && p < own->planes; p++) {
        double *padded = own->padded + TAPS, *from = row + p * columns;
        memcpy(padded + own->low - own->first, from, columns * sizeof *row);
        for (int k = 1; k <= TAPS; k++) {
            padded[-k] = from[mirrored(own->first - k, own->wide) - own->low];
            padded[width - 1 + k] = from[mirrored(own->end - 1 + k, own->wide) - own->low];
        }
        for (int k = -TAPS; k <= TAPS; k++) near[TAPS + k] = padded + k;
        BY(blur)(near, own->weights, row + p * width, width);
    }
    for (int axis = 2; axis < own->axes; axis++) {
        for (long p = 0; p < own->planes; p++) {
            for (int k = -TAPS; k <= TAPS; k++) near[TAPS + k] = row + beside(own, p, axis, k) * width;
            BY(blur)(near, own->weights, spare + p * width, width);
        }
        double *done = row;
        row = spare, spare = done;
    }
    return row;
}

/* The columns from `own->first` on of `count` rows from `first` on. */
TARGET static void BY(smooth)(const struct smooth *own, long first, long count, const struct term *term, double alpha,
                              double *out) {
    const long width = own->end - own->first, planes = own->planes;
    long told = first, known = own->from;
    for (long at = MAX(0, first - TAPS); told < first + count; at++) {
        for (; known <= MIN(at + 1, own->rows - 1); known++) BY(differ)(own, term, known);
        for (long from = 0; from < own->high - own->low; from += SPAN) BY(median)(own, at, from);
        for (; told < first + count && MIN(told + TAPS, own->rows - 1) <= at; told++) {
            const double *row = BY(smoothed)(own, told);
            double *a = own->padded, *to = out + ((told - first) * own->wide + own->first) * planes;
            JOIN(row, F64, KIND)(term, ((told - own->from) * own->wide + own->first) * planes, a, width * planes);
            for (long p = 0; p < planes; p++)
                for (long i = 0; i < width; i++) to[i * planes + p] = a[i * planes + p] + alpha * row[p * width + i];
        }
    }
}

#undef BY
