"""Makes the tiny checkpoints in tests/data with the original implementations.

python benchmarks/make_clip_fixtures.py tests/data

Random weights, every parameter among them, and what the originals compute from them in eval mode,
float32, one thread. Needs openai-clip, open_clip_torch and transformers, which minimodal itself
never does; the committed files were made with openai-clip 1.0.1, open_clip_torch 3.3.0,
transformers 5.23.0 and torch 2.13.0+cpu. Weights are stored in half precision where the original
publishes them so, and the outputs are those of the rounded weights.
"""

import json
import shutil
import sys
from pathlib import Path

import clip.model
import torch
from clip.clip import _transform
from open_clip.model import CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel


def randomise(model: nn.Module, seed: int, *, half: bool) -> None:
    """Give every parameter and statistic a value that is neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("logit_scale"):
            value = 2.0 + 0.1 * noise
        elif name.endswith("logit_bias"):
            value = -1.5 + 0.1 * noise
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            value = 1.0 + 0.2 * noise.abs()
        elif tensor.ndim >= 2:
            value = noise / max(1, tensor[0].numel()) ** 0.5
        else:
            value = 0.2 * noise
        tensor.copy_(value.half().float() if half else value)
    model.eval()


def tokens(rows: list[int], *, length: int, start: int, end: int, seed: int) -> Tensor:
    """Captions of these lengths, start and end included, with zeros behind."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, n in zip(ids, rows, strict=True):
        row[0], row[n - 1] = start, end
        row[1 : n - 1] = torch.randint(2, 28, (n - 2,), generator=generator)
    return ids


def write(folder: Path, state: dict[str, Tensor], inputs: list[Tensor], outputs: list[Tensor]):
    """Weights, inputs and outputs as safetensors."""
    names = ("in.image", "in.text", "out.encode_image", "out.encode_text", "out.logits_per_image")
    values = dict(zip(names, [*inputs, *outputs], strict=True))
    save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / "model.safetensors")
    save_file({k: v.detach().contiguous() for k, v in values.items()}, folder / "io.safetensors")


def openai(folder: Path, *, layers, width: int, patch, seed: int) -> None:
    """One of OpenAI's two architectures."""
    model = clip.model.CLIP(
        embed_dim=12, image_resolution=32, vision_layers=layers, vision_width=width,
        vision_patch_size=patch, context_length=9, vocab_size=30, transformer_width=64,
        transformer_heads=1, transformer_layers=1,
    )  # fmt: skip
    randomise(model, seed, half=True)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    text = tokens([4, 9, 3], length=9, start=28, end=29, seed=seed)
    logits, _ = model(image, text)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(9)}
    state |= {"vocab_size": torch.tensor(30)}
    outputs = [model.encode_image(image), model.encode_text(text), logits]
    write(folder, state, [image, text], outputs)


def huggingface(folder: Path, *, eos: int, seed: int) -> None:
    """Odd sizes, and towers that differ in all that config.json says."""
    config = CLIPConfig(
        projection_dim=10,
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 3, "image_size": 24, "patch_size": 8,
            "hidden_act": "gelu", "layer_norm_eps": 1e-3,
        },
        text_config={
            "hidden_size": 16, "intermediate_size": 56, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 33, "max_position_embeddings": 9,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": eos,
            "bos_token_id": 1, "pad_token_id": 0,
        },
    )  # fmt: skip
    model = CLIPModel(config)
    randomise(model, seed, half=False)
    image = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    end = 32 if eos == 2 else eos
    text = tokens([4, 9, 3], length=9, start=1, end=end, seed=seed)
    if eos != 2:  # padded with the end token, as on the Hub: the first one counts; and larger ids
        text[0, 4:] = eos
        text[:, 1] = 32
    found = model(input_ids=text, pixel_values=image)
    vision = model.vision_model(pixel_values=image).pooler_output
    words = model.text_model(input_ids=text).pooler_output
    outputs = [model.visual_projection(vision), model.text_projection(words)]
    model.save_pretrained(folder)
    state = model.state_dict()
    write(folder, state, [image, text], [*outputs, found.logits_per_image])


def open_clip(folder: Path, *, seed: int) -> None:
    """OpenCLIP's class with the text tower apart, heads of 8, and a bias."""
    config = {
        "embed_dim": 10,
        "vision_cfg": {"layers": 2, "width": 24, "head_width": 8, "mlp_ratio": 1.5,
                       "patch_size": 8, "image_size": 24},
        "text_cfg": {"context_length": 9, "vocab_size": 33, "width": 16, "heads": 2, "layers": 1},
        "init_logit_bias": -10.0,
    }  # fmt: skip
    model = CustomTextCLIP(**config)
    randomise(model, seed, half=False)
    image = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    text = tokens([4, 9, 3], length=9, start=31, end=32, seed=seed)
    logits, _ = model.get_logits(image, text)
    outputs = [model.encode_image(image), model.encode_text(text), logits]
    write(folder, model.state_dict(), [image, text], outputs)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}, indent=2))


def preprocess(folder: Path) -> None:
    """Pictures of three modes, and what OpenAI's transform makes of them at size 16."""
    outputs = {}
    for i, (mode, size) in enumerate([("RGB", (21, 17)), ("RGBA", (18, 25)), ("P", (19, 19))]):
        channels = 4 if mode == "RGBA" else 3
        generator = torch.Generator().manual_seed(i)
        pixels = torch.randint(256, (*size[::-1], channels), generator=generator).byte()
        picture = Image.fromarray(pixels.numpy())
        picture = picture.quantize(16) if mode == "P" else picture
        picture.save(folder / f"{i}_{mode}.png")
        outputs[f"out.{i}_{mode}"] = _transform(16)(Image.open(folder / f"{i}_{mode}.png"))
    save_file(outputs, folder / "io.safetensors")


@torch.no_grad()
def main() -> None:
    """Make them all below the folder given."""
    torch.set_num_threads(1)
    makers = {
        "clip_openai_vit": lambda f: openai(f, layers=1, width=64, patch=16, seed=1),
        "clip_openai_resnet": lambda f: openai(f, layers=(1, 1, 1, 1), width=4, patch=None, seed=2),
        "clip_huggingface": lambda f: huggingface(f, eos=31, seed=3),
        "clip_huggingface_eos2": lambda f: huggingface(f, eos=2, seed=4),
        "clip_open_clip": lambda f: open_clip(f, seed=5),
        "preprocess": preprocess,
    }
    for name, make in makers.items():
        folder = Path(sys.argv[1]) / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        print(name, sum(file.stat().st_size for file in folder.iterdir()) // 1024, "KB")


if __name__ == "__main__":
    main()
