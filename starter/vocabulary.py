"""Write CLIP's merge list, the whole of its vocabulary, from the file that open_clip_torch ships.

python starter/vocabulary.py bpe_simple_vocab_16e6.txt.gz src/aid/sd/vocabulary/merges.txt.gz
"""

import gzip
import sys
from pathlib import Path

lines = gzip.decompress(Path(sys.argv[1]).read_bytes()).decode().splitlines()
merges = "\n".join(lines[1 : 49152 - 256 - 2 + 1]) + "\n"
Path(sys.argv[2]).write_bytes(gzip.compress(merges.encode(), 9, mtime=0))
