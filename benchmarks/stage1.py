"""Speed of stage 1 on this machine's CPU, as ratios to a peer in the same run. Prints one JSON line per item
at the end.

    python benchmarks/stage1.py [--items encode,decode,stage1,nearest] [--peer "python bench_original.py --taming
    CHECKOUT"]

items
  encode, decode    64 base channels, multipliers 1 1 2 2 4, 2 residual blocks, attention at 16 x 16, 1024 codes of
                    256; one image of 256 x 256
  stage1            the same network at 128 x 128 with attention at 8 x 8, batch 2: one training step of generator and
                    discriminator, LPIPS on VGG16 (random weights: the work is the same), adaptive weight, Adam
  nearest           65,536 vectors of 256 against 16,384 codes

Without --peer smalti is compared with a plain implementation in this file: contiguous layout, upsampling before its
convolution, the whole matrix of distances, and for stage1 the original's two optimizer steps: a forward pass of the
generator for each of the two losses, and three backward passes through the networks of the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pairs import Workload, main
from smalti.kernels import winograd
from smalti.losses.adversarial import LeCam, adaptive_weight, hinge_discriminator, hinge_generator
from smalti.losses.objective import AdversarialSettings, ObjectiveSettings, ReconstructionLoss
from smalti.losses.patch_discriminator import PatchDiscriminator, PatchSettings
from smalti.losses.perceptual import Perceptual, vgg16
from smalti.tokenizer.blocks import Upsample, as_channels_last
from smalti.tokenizer.encoder import AutoencoderSettings
from smalti.tokenizer.quantizers import VQSettings, nearest
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from smalti.training.gan_step import GAN, AdversarialSchedule, StepInputs, simultaneous

AUTOENCODER = AutoencoderSettings(
    base_channels=64,
    channel_multipliers=(1, 1, 2, 2, 4),
    res_blocks=2,
    attention_levels=(4,),
    latent_channels=256,
    zero_residuals=False,
)
QUANTIZER = VQSettings(
    codebook_size=1024,
    codebook_dim=256,
    l2_normalize=False,
    beta_on="codebook",
    kmeans_iterations=0,
    dead_code_threshold=0.0,
)
OBJECTIVE = ObjectiveSettings(
    perceptual="none",  # the network is put in below, with random weights
    adversarial=AdversarialSettings(
        weight=0.8, start=0.0, ramp=0.0, lecam=0.0, discriminator=PatchSettings(norm="batch")
    ),
)
BASE_LR = 4.5e-6  # the original's, per image of a batch


def count_gflop(run: Callable[[], object]) -> float:
    """Billions of floating-point operations of one run with direct convolutions. Winograd's need fewer, so the fraction
    of the floor can be above 1. `run` must not call `torch.autograd.grad`, which the counter cannot follow."""
    with patch.object(winograd, "is_supported", return_value=False), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def tokenizer() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(VQGANSettings(autoencoder=AUTOENCODER, quantizer=QUANTIZER))


def random_images(batch: int, side: int) -> Tensor:
    return torch.rand(batch, 3, side, side) * 2 - 1


def encode() -> Workload:
    model = tokenizer().eval()
    as_channels_last(model)
    images = random_images(1, 256).contiguous(memory_format=torch.channels_last)
    run = torch.no_grad()(lambda: model.encode(images))
    return Workload(run, count_gflop(run))


def decode() -> Workload:
    model = tokenizer().eval()
    as_channels_last(model)
    latents = torch.randn(1, 256, 16, 16)
    run = torch.no_grad()(lambda: model.decode(latents))
    return Workload(run, count_gflop(run))


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=2 * BASE_LR, betas=(0.5, 0.9), fused=True)


def reconstruction_loss() -> ReconstructionLoss:
    loss = ReconstructionLoss(OBJECTIVE)
    loss.perceptual = Perceptual(vgg16())
    return loss


def stage1() -> Workload:
    model, discriminator, distance = (
        tokenizer(),
        PatchDiscriminator(OBJECTIVE.adversarial.discriminator),
        reconstruction_loss(),
    )
    for module in (model, discriminator):
        as_channels_last(module)
    images = random_images(2, 128).contiguous(memory_format=torch.channels_last)

    def autoencode(images: Tensor, quantize: object) -> tuple[Tensor, object, Tensor]:
        features = model.features(images)
        quantized = model.quantizer(features)
        return features, quantized, model.decode(quantized.latents)

    gan = GAN(
        fabric=Fabric(accelerator="cpu"),
        autoencoder=autoencode,
        discriminator=discriminator,
        discriminator_weights=list(discriminator.parameters()),
        reconstruction_loss=distance,
        last_layer=model.decoder.last_layer,
        settings=OBJECTIVE,
        optimizer=adam(model),
        discriminator_optimizer=adam(discriminator),
    )
    inputs = StepInputs(
        quantize=model.quantizer,
        schedule=AdversarialSchedule(generator=1.0, discriminator=1.0),
        lecam_ema=LeCam.start(),
        lr=2 * BASE_LR,
        discriminator_lr=2 * BASE_LR,
    )

    def run() -> None:
        simultaneous(gan, images, inputs)

    return Workload(run, step_floor(model, discriminator, distance, images))


def step_floor(model: VQGAN, discriminator: nn.Module, distance: ReconstructionLoss, images: Tensor) -> float:
    """Operations that no step can do without, a backward pass through a network counted as one forward pass for the
    gradient of its input and one for that of its weights: the tokenizer 3; the frozen perceptual network 3 (target,
    reconstructions, and back to them); the discriminator 7 (two batches, back to the reconstructions, and twice 2 for
    its own loss)."""
    with torch.no_grad():
        passes = {
            3: [lambda: model(images), lambda: distance.perceptual.target(images)],
            7: [lambda: discriminator(images)],
        }
        return sum(times * count_gflop(run) for times, runs in passes.items() for run in runs)


def nearest_codes() -> Workload:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(65536, 256), torch.rand(16384, 256) / 16384
    return Workload(lambda: nearest(vectors, codebook), 2 * 65536 * 16384 * 256 / 1e9)


class PlainUpsample(nn.Module):
    """Each value repeated 2x2, then a 3x3 convolution, as it is written in the paper."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        self.convolution = upsample.convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def with_plain_upsampling(model: VQGAN) -> VQGAN:
    upsamples = model.decoder.upsamples
    for level, upsample in enumerate(upsamples):
        if isinstance(upsample, Upsample):
            upsamples[level] = PlainUpsample(upsample)
    return model


def plain_encode() -> Workload:
    model, images = tokenizer().eval(), random_images(1, 256)
    run = torch.no_grad()(lambda: model.encode(images))
    return Workload(run, count_gflop(run))


def plain_decode() -> Workload:
    model, latents = with_plain_upsampling(tokenizer()).eval(), torch.randn(1, 256, 16, 16)
    run = torch.no_grad()(lambda: model.decode(latents))
    return Workload(run, count_gflop(run))


def plain_stage1() -> Workload:
    """Two optimizer steps: each loss from its own forward pass, the adaptive weight from two more backward passes."""
    model, discriminator, distance = (
        with_plain_upsampling(tokenizer()),
        PatchDiscriminator(OBJECTIVE.adversarial.discriminator),
        reconstruction_loss(),
    )
    optimizers = adam(model), adam(discriminator)
    images, last = random_images(2, 128), model.decoder.last_layer

    def generator_step() -> None:
        reconstructions, quantized = model(images)
        total = distance(images, reconstructions).total
        adversarial = hinge_generator(discriminator(reconstructions))
        gradients = (torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (total, adversarial))
        weight = 0.8 * adaptive_weight(*gradients)
        optimizers[0].zero_grad(set_to_none=True)
        (total + weight * adversarial + quantized.loss).backward()
        optimizers[0].step()

    def discriminator_step() -> None:
        reconstructions, _ = model(images)  # builds a graph that is not used, as the original does
        loss = hinge_discriminator(discriminator(images), discriminator(reconstructions.detach()))
        optimizers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[1].step()

    def run() -> None:
        generator_step()
        discriminator_step()

    return Workload(run, step_floor(model, discriminator, distance, images))


def plain_nearest() -> Workload:
    torch.manual_seed(0)
    vectors, codebook = torch.randn(65536, 256), torch.rand(16384, 256) / 16384

    def run() -> Tensor:
        squares = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
        return torch.argmin(squares - 2 * (vectors @ codebook.T), 1)

    return Workload(run, 2 * 65536 * 16384 * 256 / 1e9)


if __name__ == "__main__":
    main(
        __doc__,
        {
            "ours": {"encode": encode, "decode": decode, "stage1": stage1, "nearest": nearest_codes},
            "reference": {
                "encode": plain_encode,
                "decode": plain_decode,
                "stage1": plain_stage1,
                "nearest": plain_nearest,
            },
        },
    )
