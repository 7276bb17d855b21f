"""Before any module here imports a library that imports triton: triton defines its own functions in one of two ways."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
