#!/usr/bin/env bash
# The C++ application's own code under AddressSanitizer and UndefinedBehaviorSanitizer: its unit tests, then mutated
# images and descriptions. Usage: bash tests/deployment/fuzz_infer.sh [RUNS] [SEED] [IMAGE_OR_JSON...]
# Without files, digits as JPEG (baseline, progressive, grayscale, CMYK), PNG and BMP, and a description.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
runs=${1:-20000}
seed=${2:-1}
files=("${@:3}")
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cmake -S "$root/ascend310_infer" -B "$folder/build" -DWITH_LITE=OFF -DSANITIZE=ON > "$folder/log" || {
    tail "$folder/log" >&2
    exit 1
}
cmake --build "$folder/build" --target unit_tests fuzz --parallel "$(nproc)" >> "$folder/log" || {
    tail "$folder/log" >&2
    exit 1
}
"$folder/build/unit_tests" --gtest_brief=1
if [ ${#files[@]} -eq 0 ]; then
    PYTHONPATH=$root "$python" - "$folder" <<'EOF'
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
folder = Path(sys.argv[1])
from src.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
digit = Image.fromarray((load_digits().images[7] * 15).astype(np.uint8)).resize((70, 53), Image.BICUBIC)
color = Image.merge("RGB", (digit, digit.rotate(90), digit.transpose(Image.FLIP_TOP_BOTTOM)))
color.save(folder / "a.jpg")
color.save(folder / "b.jpg", progressive=True, subsampling=0)
digit.save(folder / "c.jpg")
color.convert("CMYK").save(folder / "d.jpg")
color.save(folder / "e.png")
color.convert("P").save(folder / "f.png")
color.save(folder / "g.bmp")
values = {**Preprocessing(28, 24, 30, IMAGENET_MEAN, IMAGENET_STD).to_dict(), "interpolation": "bilinear",
          "color_order": "RGB", "max_pixels": 10**8}
description = {"format": "spnas-export", "version": 1, "preprocessing": values, "classes": list("0123456789"),
               "model": {"file": "net.mindir", "format": "MINDIR", "mindir_version": 1, "sha256": "0" * 64},
               "input": {"shape": [1, 3, 28, 24], "layout": "NCHW", "type": "float32"}}
(folder / "h.json").write_text(json.dumps(description))
EOF
    files=("$folder"/?.*)
fi
"$folder/build/fuzz" "$runs" "$seed" "${files[@]}"
