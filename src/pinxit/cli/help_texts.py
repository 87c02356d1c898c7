"""The help of flags that several commands have; it imports nothing, so that help is quick."""

DEVICE = "device to compute on, by its name in torch: cpu, cuda, cuda:1, mps, xpu, ..."
DEVICE_DEFAULT = "the accelerator that torch finds, else cpu"
DOWNLOAD = "download the networks that score images (DINO and CLIP, 692 MB) if needed"
GPUS = "number of GPUs to use, with one process for each"
SHARD = "divide all trained weights among the processes of --gpus, for dreambooth"
COMPILE = "compile the denoiser's blocks first, with torch.compile; useful in long runs only"
