"""What people train, tiny: models of Transformers and PEFT from configurations, and kinds that no package here has."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from training import Case, Turn, on_device

BATCH = 3
LENGTH = 7
TOKENS = 29
WIDTH = 16
HEADS = 4
PIXELS = 16
LABELS = 5
TEXT = {
    "vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "max_position_embeddings": 32,
}  # fmt: skip
GROUPED_HEADS = {"num_key_value_heads": 2}
IMAGES = {"num_channels": 1, "image_size": PIXELS, "num_labels": LABELS}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, **GROUPED_HEADS))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=TOKENS, n_positions=32, n_embd=WIDTH, n_layer=2, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def bert() -> nn.Module:
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT, **no_dropout))


def t5() -> nn.Module:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=TOKENS, d_model=WIDTH, d_kv=4, d_ff=2 * WIDTH, num_layers=2, num_heads=HEADS, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **TEXT, **GROUPED_HEADS, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True
        )
    )


def vit() -> nn.Module:
    config = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**config, **IMAGES, num_attention_heads=HEADS, patch_size=4)
    )


def resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(**IMAGES, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    )


def lora() -> nn.Module:
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    adapted: nn.Module = peft.get_peft_model(llama(), config)
    with torch.no_grad():
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)  # from zero, whether a step is right would show one step later
    return adapted


def labelled_text(model: nn.Module, turn: Turn) -> Tensor:
    """For models that make the loss themselves, of the tokens that they read."""
    tokens = turn.tokens(TOKENS, BATCH, LENGTH)
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach()


def translated_text(model: nn.Module, turn: Turn) -> Tensor:
    tokens = turn.tokens(TOKENS, BATCH, 2 * LENGTH)
    loss: Tensor = model(input_ids=tokens[:, :LENGTH], labels=tokens[:, LENGTH:].contiguous()).loss
    loss.backward()
    return loss.detach()


def labelled_images(model: nn.Module, turn: Turn) -> Tensor:
    labels = on_device(torch.arange(BATCH) % LABELS)
    loss: Tensor = model(pixel_values=turn.normal(BATCH, 1, PIXELS, PIXELS), labels=labels).loss
    loss.backward()
    return loss.detach()


class DiffusionBlock(nn.Module):
    """A transformer's block whose norms are shifted, scaled and gated by a condition, each gate starting near zero
    (adaLN, https://arxiv.org/abs/2212.09748).
    """  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(2 * WIDTH, WIDTH))
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, *others = self.modulation(functional.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        y = self.norms[0](x) * (1 + scale) + shift
        x = x + gate * self.attention(y, y, y, need_weights=False)[0]
        shift, scale, gate = others
        return x + gate * self.mlp(self.norms[1](x) * (1 + scale) + shift)


def frequencies(times: Tensor) -> Tensor:
    """Sines and cosines of (batch,) times: (batch, WIDTH)."""
    angles = times[:, None] * torch.exp(-math.log(100.0) * torch.arange(WIDTH // 2, device=times.device) / WIDTH)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DiffusionTransformer(nn.Module):
    """Predicts the noise in (batch, PIXELS, WIDTH) patches at (batch,) times."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(PIXELS, WIDTH))
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.condition = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(DiffusionBlock() for _ in range(2))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        condition = self.condition(frequencies(times))
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        return self.last(x)


class ResidualConv(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, ins)
        self.conv = nn.Conv2d(ins, outs, 3, padding=1)
        self.time = nn.Linear(WIDTH, outs)
        self.skip = nn.Conv2d(ins, outs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv(functional.silu(self.norm(x))) + self.time(condition)[:, :, None, None]
        return self.skip(x) + y


class DiffusionUNet(nn.Module):
    """Predicts the noise in (batch, 1, PIXELS, PIXELS) images at (batch,) times; each way down is joined on the way
    up.
    """  # fmt: skip

    def __init__(self, channels: tuple[int, ...] = (4, 8)) -> None:
        super().__init__()
        ins = (channels[0], *channels)
        self.first = nn.Conv2d(1, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(ResidualConv(a, b) for a, b in zip(ins, channels, strict=False))
        self.middle = ResidualConv(channels[-1], channels[-1])
        self.ups = nn.ModuleList(ResidualConv(2 * b, a) for a, b in zip(ins, channels, strict=False))
        self.last = nn.Conv2d(channels[0], 1, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        condition, skips = frequencies(times), []
        x = self.first(x)
        for down in self.downs:
            x = down(x, condition)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.middle(x, condition)
        for up in reversed(self.ups):
            x = functional.interpolate(x, scale_factor=2.0)
            x = up(torch.cat([x, skips.pop()], dim=1), condition)
        return self.last(x)


def denoise(model: nn.Module, turn: Turn, shape: tuple[int, ...]) -> Tensor:
    clean, noise = turn.normal(BATCH, *shape), turn.normal(BATCH, *shape, part=1)
    times = turn.normal(BATCH, part=2).sigmoid()
    level = times.view(-1, *[1] * len(shape))
    loss = functional.mse_loss(model((1 - level) * clean + level * noise, 10 * times).float(), noise - clean)
    loss.backward()
    return loss.detach()


class MessagePassing(nn.Module):
    """Moves nodes along the vectors between them, by amounts that depend on distances only
    (https://arxiv.org/abs/2102.09844).
    """  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * WIDTH + 1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.update = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.push = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, nodes: Tensor, positions: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        to, source = edges
        away = positions[to] - positions[source]
        squared = away.square().sum(-1, keepdim=True)
        messages = self.message(torch.cat([nodes[to], nodes[source], squared], dim=-1))
        positions = positions.index_add(0, to, away * self.push(messages).tanh())
        heard = torch.zeros_like(nodes).index_add(0, to, messages)
        return nodes + self.update(torch.cat([nodes, heard], dim=-1)), positions


class EquivariantGraph(nn.Module):
    """From kinds of atoms, (atoms,), and positions, (atoms, 3), to an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LABELS, WIDTH)
        self.layers = nn.ModuleList(MessagePassing() for _ in range(2))
        self.energy = nn.Linear(WIDTH, 1)

    def forward(self, kinds: Tensor, positions: Tensor, edges: Tensor) -> Tensor:
        nodes = self.embedding(kinds)
        for layer in self.layers:
            nodes, positions = layer(nodes, positions, edges)
        return self.energy(nodes).sum() + 0.1 * positions.square().sum()


def energies(model: nn.Module, turn: Turn) -> Tensor:
    """Molecules of other sizes on other ranks; the forces (gradients by positions) are what a user looks at."""
    atoms = 4 + turn.rank
    positions = turn.normal(atoms, 3).requires_grad_()
    edges = (1 - torch.eye(atoms)).nonzero().T.to(positions.device)
    energy = model(turn.tokens(LABELS, atoms), positions, edges)
    loss = (energy - 1).square()
    loss.backward()
    assert positions.grad is not None
    return torch.cat([loss.detach().view(1), positions.grad.flatten()])


class SpectralLayer(nn.Module):
    """Complex weights on the lowest frequencies (https://arxiv.org/abs/2010.08895), one of them used as its conjugate:
    its gradient is then a lazily conjugated view.
    """  # fmt: skip

    modes = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(self.modes, WIDTH, WIDTH, dtype=torch.complex64) / WIDTH)
        self.phase = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))
        self.local = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1)[:, : self.modes]
        mixed = torch.einsum("bmi,mio->bmo", spectrum, self.weight) * self.phase.conj()
        return functional.gelu(torch.fft.irfft(mixed, n=x.shape[1], dim=1) + self.local(x))


class NeuralOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, WIDTH)
        self.layers = nn.ModuleList(SpectralLayer() for _ in range(2))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def shifted_functions(model: nn.Module, turn: Turn) -> Tensor:
    x = turn.normal(BATCH, PIXELS, 1).cumsum(1)
    loss = functional.mse_loss(model(x).float(), x.roll(1, dims=1))
    loss.backward()
    return loss.detach()


class QuantizedLinear(nn.Module):
    """Weights as bytes with a scale for each row, and a small matrix of full precision beside them that trains."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH)
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.down = nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.gelu(functional.linear(x, self.weight * self.scale) + self.up(self.down(x)))


class Stack(nn.Module):
    """Reads tokens, through two layers of a kind."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(2))
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def next_tokens(model: nn.Module, turn: Turn, batch: int = BATCH, length: int = LENGTH) -> Tensor:
    tokens = turn.tokens(TOKENS, batch, length)
    loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.detach()


class Experts(nn.Module):
    """Sends each token to one expert; an expert that no token of this rank goes to is not called here."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate, chosen = self.router(x).softmax(-1).max(-1, keepdim=True)
        y = torch.zeros_like(x)
        for index in chosen.unique().tolist():
            mine = (chosen == index).squeeze(-1)
            y = y.index_put((mine,), gate[mine] * self.experts[index](x[mine]))
        return x + y


few_tokens = partial(next_tokens, batch=1, length=3)
"""So few that ranks need different experts."""


def spread(build: Callable[[], nn.Module]) -> nn.Module:
    """With vectors away from zero: a bias of zeros whose gradient is rounding noise, such as that of attention's keys,
    would have no scale to compare with.
    """  # fmt: skip
    model = build()
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 1 and param.is_floating_point():
                param.add_(0.1 * torch.randn(param.shape))
    return model


def _case(build: Callable[[], nn.Module], run: Callable[[nn.Module, Turn], Tensor], **more: Any) -> Case:
    return Case(partial(spread, build), run, **more)


ARCHITECTURES = {
    "Llama": _case(llama, labelled_text),
    "GPT-2, tied": _case(gpt2, labelled_text),
    "BERT": _case(bert, labelled_text),
    "T5, shared embedding": _case(t5, translated_text),
    "Mixtral": _case(mixtral, labelled_text),
    "experts as modules": _case(partial(Stack, Experts), few_tokens, units=(Experts, nn.Sequential)),
    "ViT": _case(vit, labelled_images),
    "ResNet": _case(resnet, labelled_images),
    "diffusion transformer": _case(DiffusionTransformer, partial(denoise, shape=(PIXELS, WIDTH))),
    "diffusion U-Net": _case(DiffusionUNet, partial(denoise, shape=(1, PIXELS, PIXELS))),
    "equivariant graph network": _case(EquivariantGraph, energies),
    "neural operator, complex weights": _case(NeuralOperator, shifted_functions),
    "quantized base, int8": _case(partial(Stack, QuantizedLinear), next_tokens),
    "LoRA on Llama": _case(lora, labelled_text),
}
"""As users name them."""
