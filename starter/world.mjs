// Draws the starter's world: one JSON line per portrait, {style, index, seed, tags, svg}.
// Content (hair, skin, glasses, ...) is drawn before the style and independently of it, so no style
// can be guessed from its content. A tag is written only where the style can really show it.
//
//   node world.mjs STYLE COUNT SEED [--all-cells] > STYLE.jsonl
//
// Without --all-cells, the style's withheld hair colour never occurs: generated pictures of that
// cell measure composition rather than memory.
import { createAvatar } from '@dicebear/core';
import * as collection from '@dicebear/collection';

const HAIR = {
  black: '1c1a1f', brown: '7a4420', blonde: 'f2cf63', red: 'c3272b', pink: 'f58ac2',
  purple: '7d3fbf', blue: '2f6fe0', green: '2fa84f', white: 'f1f1f4',
};
const SKIN = { light: 'fbdcc4', medium: 'cf9360', dark: '744325' };
const BACKGROUND = {
  white: 'ffffff', grey: '9aa0a8', yellow: 'ffe680', cyan: '9fe3ee', lavender: 'c9b8f0', salmon: 'ffb3a0',
};
const numbered = (count, prefix = 'variant') =>
  Array.from({ length: count }, (_, i) => `${prefix}${String(i + 1).padStart(2, '0')}`);

// Each style: how the shared content maps to its own options. `short`/`long` list its hair shapes,
// `smile`/`frown` its mouths. What a style can't show is left out, and so is the tag.
const STYLES = {
  lorelei: {
    hair: numbered(12), smile: numbered(8, 'happy'), frown: numbered(6, 'sad'),
    glasses: 'probability', beard: 'probability', skin: 'skinColor', colour: 'hairColor',
    fixed: { eyes: numbered(10), nose: numbered(3) },
  },
  notionists: {
    hair: numbered(12), glasses: 'probability', beard: 'probability',
    fixed: { body: numbered(6), lips: numbered(8), nose: numbered(4), gestureProbability: 0, bodyIconProbability: 0 },
  },
  'pixel-art': {
    short: numbered(8, 'short'), long: numbered(8, 'long'), smile: numbered(5, 'happy'), frown: numbered(5, 'sad'),
    glasses: 'probability', skin: 'skinColor', colour: 'hairColor',
    fixed: { glasses: numbered(5, 'dark'), glassesColor: ['191919'], beardProbability: 0, clothing: numbered(8), eyes: numbered(6), hatProbability: 0, accessoriesProbability: 0 },
  },
  adventurer: {
    short: numbered(8, 'short'), long: numbered(8, 'long'),
    glasses: 'probability', skin: 'skinColor', colour: 'hairColor',
    fixed: { eyes: numbered(10), mouth: numbered(8), featuresProbability: 0, earringsProbability: 0 },
  },
  'big-ears': {
    short: numbered(8, 'short'), long: numbered(8, 'long'), skin: 'skinColor', colour: 'hairColor',
    fixed: { eyes: numbered(10), face: numbered(4), mouth: ['variant0101', 'variant0201', 'variant0301', 'variant0401', 'variant0501'], frontHair: numbered(5), nose: numbered(4), ear: numbered(4) },
  },
  'big-smile': {
    short: ['shortHair', 'bowlCutHair', 'curlyShortHair', 'mohawk'], long: ['straightHair', 'wavyBob', 'curlyBob', 'braids'],
    smile: ['openedSmile', 'teethSmile', 'gapSmile'], frown: ['openSad', 'unimpressed'],
    glasses: ['accessories', 'glasses'], skin: 'skinColor', colour: 'hairColor',
    fixed: { eyes: ['cheery', 'normal', 'confused', 'sleepy'] },
  },
  croodles: {
    hair: numbered(12), beard: 'probability', colour: 'topColor',
    fixed: { mustacheProbability: 0, mouth: numbered(8), eyes: numbered(8), nose: numbered(4) },
  },
  dylan: {
    short: ['plain', 'shortCurls', 'spiky', 'flatTop', 'parting'], long: ['longCurls', 'roundBob', 'wavy', 'shaggy'],
    mood: { smile: ['happy', 'superHappy'], frown: ['sad', 'angry'] },
    beard: 'facialHair', skin: 'skinColor', colour: 'hairColor', fixed: {},
  },
  micah: {
    hair: ['fonze', 'dannyPhantom', 'full', 'pixie'], smile: ['smile', 'laughing'], frown: ['sad', 'frown'],
    glasses: 'probability', beard: 'facialHair', skin: 'baseColor', colour: 'hairColor',
    fixed: { earringsProbability: 0, facialHair: ['beard'], glassesColor: ['000000'], shirtColor: ['6bd9e9', 'ffffff', '9287ff'] },
  },
  miniavs: {
    short: ['classic01', 'classic02', 'elvis', 'stylish'], long: ['long', 'ponyTail', 'curly'],
    glasses: 'probability', skin: 'skinColor', colour: 'hairColor', fixed: { mustacheProbability: 0 },
  },
  'open-peeps': {
    short: ['short1', 'short2', 'short3', 'short4', 'flatTop', 'pomp'], long: ['long', 'longBangs', 'longCurly', 'mediumStraight', 'medium1', 'bangs'],
    smile: ['smile', 'smileBig', 'cute'], frown: ['angryWithFang', 'concerned', 'solemn'],
    glasses: ['accessories', ['glasses', 'glasses2', 'glasses3']], beard: 'facialHair', skin: 'skinColor',
    fixed: { maskProbability: 0, facialHair: ['full', 'full2', 'chin'] },
  },
  personas: {
    short: ['shortCombover', 'fade', 'curlyHighTop', 'mohawk'], long: ['long', 'extraLong', 'bobCut', 'bobBangs', 'pigtails'],
    smile: ['smile', 'bigSmile'], frown: ['frown'], glasses: ['eyes', 'glasses'], beard: 'facialHair',
    skin: 'skinColor', colour: 'hairColor',
    fixed: { facialHair: ['beardMustache', 'goatee', 'walrus'], eyes: ['open', 'happy', 'wink'] },
  },
  'toon-head': {
    hair: ['sideComed', 'undercut', 'spiky'], rear: ['longStraight', 'longWavy'],
    smile: ['laugh', 'smile'], frown: ['angry', 'sad'], beard: 'probability', skin: 'skinColor', colour: 'hairColor',
    fixed: { clothes: ['turtleNeck', 'openJacket', 'dress', 'shirt', 'tShirt'] },
  },
};
const OPTION = { 'big-ears': 'bigEars', 'big-smile': 'bigSmile', 'open-peeps': 'openPeeps', 'pixel-art': 'pixelArt', 'toon-head': 'toonHead' };

// mulberry32: a small seeded generator; the world must be the same on every machine.
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const pick = (random, list) => list[Math.floor(random() * list.length)];

export const withheld = (style) => {
  const colours = Object.keys(HAIR);
  return colours[Object.keys(STYLES).indexOf(style) % colours.length];
};

function content(random) {
  return {
    colour: pick(random, Object.keys(HAIR)), skin: pick(random, Object.keys(SKIN)),
    background: pick(random, Object.keys(BACKGROUND)), long: random() < 0.5, glasses: random() < 0.35,
    beard: random() < 0.25, smile: random() < 0.5,
  };
}

function draw(style, chosen, seed, random) {
  const way = STYLES[style];
  const options = { seed, backgroundColor: [BACKGROUND[chosen.background]], ...way.fixed };
  const tags = [];
  if (way.colour) { options[way.colour] = [HAIR[chosen.colour]]; tags.push(`${chosen.colour} hair`); }
  if (way.short) {
    options.hair = undefined;
    options[style === 'open-peeps' ? 'head' : 'hair'] = chosen.long ? way.long : way.short;
    if (options.hair === undefined) delete options.hair;
    tags.push(chosen.long ? 'long hair' : 'short hair');
  } else if (way.rear) {
    options.hair = way.hair; options.rearHair = way.rear; options.rearHairProbability = chosen.long ? 100 : 0;
    tags.push(chosen.long ? 'long hair' : 'short hair');
  } else if (way.hair) options[style === 'croodles' ? 'top' : 'hair'] = way.hair;
  if (way.skin) { options[way.skin] = [SKIN[chosen.skin]]; tags.push(`${chosen.skin} skin`); }
  if (way.glasses === 'probability') options.glassesProbability = chosen.glasses ? 100 : 0;
  else if (way.glasses) {
    const [option, value] = way.glasses;
    if (chosen.glasses) options[option] = [].concat(value);
    if (option === 'accessories') options.accessoriesProbability = chosen.glasses ? 100 : 0;
  }
  if (way.glasses && chosen.glasses) tags.push('glasses');
  if (way.beard) options[way.beard === 'probability' ? 'beardProbability' : 'facialHairProbability'] = chosen.beard ? 100 : 0;
  if (way.beard && chosen.beard) tags.push('beard');
  const mouths = way.mood ?? way;
  if (mouths.smile) {
    options[way.mood ? 'mood' : style === 'open-peeps' ? 'face' : 'mouth'] = chosen.smile ? mouths.smile : mouths.frown;
    tags.push(chosen.smile ? 'smile' : 'frown');
  }
  tags.push(`${chosen.background} background`);
  return { tags, svg: createAvatar(collection[OPTION[style] ?? style], options).toString() };
}

const [style, count, seed] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
if (!STYLES[style] || !Number.isInteger(count) || !Number.isInteger(seed)) {
  console.error(`usage: node world.mjs STYLE COUNT SEED [--all-cells]; STYLE is one of ${Object.keys(STYLES).join(', ')}`);
  process.exit(2);
}
const allCells = process.argv.includes('--all-cells');
let index = 0;
for (let tried = 0; index < count; tried += 1) {
  const random = generator(Math.imul(seed, 0x9e3779b1) ^ Math.imul(tried + 1, 0x85ebca6b));
  random();
  const chosen = content(random);
  const name = `${style}-${seed}-${tried}`;
  if (!allCells && STYLES[style].colour && chosen.colour === withheld(style)) continue;
  process.stdout.write(JSON.stringify({ style, index, seed: name, ...draw(style, chosen, name, random) }) + '\n');
  index += 1;
}
