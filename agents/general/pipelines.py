"""The U-Net of a pipeline of diffusers, from a folder or the Hugging Face hub; safetensors only."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qgpo.images.networks import diffusers_parts


class Pipeline(NamedTuple):
    """What a data model takes from a pipeline."""

    unet: dict[str, Any]
    """arguments of UNet2DModel"""
    weights: dict[str, Tensor]
    half_log_snr: Tensor
    """log(alpha / sigma) of each of its noise levels, decreasing"""


def read_pipeline(name: str, prediction: str) -> Pipeline:
    """The U-Net and the noise levels of a pipeline that predicts as `prediction` says.

    Raises ValueError for one that predicts something else, OSError where it is not found.
    """
    parts = diffusers_parts()
    unet = parts.UNet2DModel.from_pretrained(
        name, subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False
    )
    scheduler = parts.DDPMScheduler.from_pretrained(name, subfolder="scheduler")
    kinds = {"epsilon": "noise", "v_prediction": "velocity"}
    found = kinds.get(scheduler.config.prediction_type, scheduler.config.prediction_type)
    if found != prediction:
        raise ValueError(f"prediction={prediction!r}, expected {found!r}, as {name!r} predicts")
    known = set(inspect.signature(parts.UNet2DModel.__init__).parameters)
    settings = {key: value for key, value in dict(unet.config).items() if key in known}
    signal = scheduler.alphas_cumprod.double()
    half_log_snr = 0.5 * (torch.log(signal) - torch.log1p(-signal))
    return Pipeline(settings, unet.state_dict(), half_log_snr.float())
