"""Our CLIP tokenizer against OpenAI's, on COCO-like captions: texts a second, and their ratio.

pip install openai-clip ftfy regex       # or open_clip_torch, which has a copy of that tokenizer
python benchmarks/tokenizer.py
python benchmarks/tokenizer.py --captions PATH/annotations/captions_train2017.json

Both run in one process, in turn, each round with new tokenizers whose caches are empty; first the
ids are compared. Without --captions a small grammar writes the captions, the same each time.
"""

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from minimodal.pretrained.clip_tokenizer import find_merges, load_clip_tokenizer

# Where the original is, or its copy: loaded as a file, since the packages want torchvision.
MODULES = (("clip", "simple_tokenizer.py"), ("open_clip", "tokenizer.py"))
HOW_TO_INSTALL = "install the original to compare with: pip install openai-clip ftfy regex"

SYLLABLES = (
    "ba be bo ca co da di fo ga he in ka la li ma mo na no pa ra ri sa so ta ti to va".split()
)
SENTENCES = (
    "A {} {} {} on top of a {}.",
    "Two {}s {} near the {} {}",
    "The {}'s {} is {}, with {} in the background.",
    "a {} of {} and {} - {} 12",
)


def made_up_captions(count: int) -> list[str]:
    """Sentences of made-up words, of which a few are frequent and many rare, as in a language."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(9000)]
    rarity = [1 / (place + 3) for place in range(len(words))]  # Zipf's law
    captions = []
    for _ in range(count):
        sentence = draw.choice(SENTENCES)
        captions.append(sentence.format(*draw.choices(words, rarity, k=sentence.count("{}"))))
    return captions


def real_captions(path: Path, count: int) -> list[str]:
    """The captions of a COCO file, in order; joined by halves where there are too few."""
    notes = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    captions = [note["caption"] for note in notes]
    draw = random.Random(0)
    while len(captions) < count:
        first, second = (draw.choice(captions[: len(notes)]).split() for _ in range(2))
        captions.append(" ".join(first[: len(first) // 2] + second[len(second) // 2 :]))
    return captions[:count]


def original_module() -> ModuleType:
    """The module with OpenAI's SimpleTokenizer."""
    for package, name in MODULES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / name).is_file():
                file_spec = importlib.util.spec_from_file_location("original", path)
                module = importlib.util.module_from_spec(file_spec)
                try:
                    file_spec.loader.exec_module(module)
                except ModuleNotFoundError as error:
                    sys.exit(f"{path} needs {error.name}; {HOW_TO_INSTALL}")
                print(f"original: {package}/{name}")
                return module
    sys.exit(HOW_TO_INSTALL)


def seconds(encode: Callable[[str], list[int]], captions: list[str]) -> float:
    """The time for all captions, one by one."""
    began = time.perf_counter()
    for caption in captions:
        encode(caption)
    return time.perf_counter() - began


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, help="COCO's JSON (default: made-up captions)")
    parser.add_argument("--merges", type=Path, help="the merges file (default: an installed one)")
    parser.add_argument("-n", type=int, default=20_000, help="captions (default: 20000)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    given = parser.parse_args()
    original, merges = original_module(), given.merges or find_merges()
    captions = (
        real_captions(given.captions, given.n) if given.captions else made_up_captions(given.n)
    )
    theirs, ours = original.SimpleTokenizer(str(merges)), load_clip_tokenizer(merges)
    different = sum(theirs.encode(caption) != ours.encode(caption) for caption in captions)
    words = len({word for caption in captions for word in caption.split()})
    print(f"{len(captions)} captions, {words} different words; {different} with other ids")

    times: dict[str, list[float]] = {"original": [], "ours": [], "rows": []}
    for _ in range(given.rounds):
        times["original"].append(seconds(original.SimpleTokenizer(str(merges)).encode, captions))
        times["ours"].append(seconds(load_clip_tokenizer(merges).encode, captions))
        tokenizer, began = load_clip_tokenizer(merges), time.perf_counter()
        tokenizer(captions, 77, truncate=True)
        times["rows"].append(time.perf_counter() - began)
    for name, all_ in times.items():
        print(f"{name:9s} {len(captions) / statistics.median(all_):9,.0f} captions a second")
    ratios = [a / b for a, b in zip(times["original"], times["ours"], strict=True)]
    print(f"original/ours {statistics.median(ratios):.2f} (median of {len(ratios)} rounds, "
          f"{min(ratios):.2f} to {max(ratios):.2f}); rows: ours as a (B, 77) tensor")  # fmt: skip


if __name__ == "__main__":
    main()
