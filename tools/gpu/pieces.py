"""Write a pretrained encoder in fp16 as pieces that can be carried one by one, each a folder below a size.

usage: python3 tools/gpu/pieces.py ENCODER_DIR OUT [--megabytes 50]

Writes OUT/1, OUT/2 and so on; the first also has the configuration and the tokenizer. The files of all of them in one
folder are the encoder, which loads with from_pretrained: the weights are sharded, as transformers writes large models.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from distill.storage.checksums import SEAL
from distill.storage.files import atomic_path

INDEX = "model.safetensors.index.json"


def main() -> None:
    """Write the pieces and print their sizes."""
    parser = argparse.ArgumentParser(description="Write an encoder in fp16 as pieces that can be carried.")
    parser.add_argument("encoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=int, default=50, help="size of the weights in a piece (50)")
    arguments = parser.parse_args()
    cut(arguments.encoder, arguments.out, arguments.megabytes * 10**6)
    for piece in sorted(arguments.out.iterdir()):
        print(f"{piece}: {sum(file.stat().st_size for file in piece.iterdir()) / 1e6:.1f} MB")


def cut(encoder: Path, out: Path, size: int) -> None:
    """Write the pieces of `encoder` to the new folder `out`, each of at most `size` bytes of weights, or one tensor."""
    weights = {
        name: tensor for file in sorted(encoder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(halves, max_shard_size=size)
    with atomic_path(out) as partial:
        for index, (name, held) in enumerate(split.filename_to_tensors.items(), start=1):
            (partial / str(index)).mkdir(parents=True)
            shard = {key: halves[key].contiguous() for key in held}
            save_file(shard, partial / str(index) / name, metadata={"format": "pt"})
        if split.is_sharded:
            placed = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (partial / "1" / INDEX).write_text(json.dumps(placed))
        for file in encoder.iterdir():
            if file.suffix in (".json", ".txt") and file.name not in (INDEX, SEAL):
                shutil.copy(file, partial / "1")


if __name__ == "__main__":
    main()
