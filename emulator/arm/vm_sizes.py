"""The VM sizes that people train and serve on, with their numbers as Azure documents them. Not all that Azure has."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VmSize:
    """One size: vCPUs, memory in GB, GPUs, and the temporary disk in GB."""

    name: str
    family: str
    vcpus: int
    memory: float
    gpus: int
    disk: int

    @property
    def premium_io(self) -> bool:
        """Whether premium disks can be attached: the sizes with an ``s`` after their number of vCPUs, and all DS."""
        body = self.name.removeprefix("Standard_")
        return body.startswith("DS") or "s" in body.split("_")[0].lstrip("ABCDEFHLMNV")


def _series(family: str, gpus: int, *rows: tuple[str, int, float, int]) -> list[VmSize]:
    return [VmSize(f"Standard_{name}", family, vcpus, memory, gpus, disk) for name, vcpus, memory, disk in rows]


VM_SIZES = [
    *_series("standardDSv2Family", 0, ("DS1_v2", 1, 3.5, 7), ("DS2_v2", 2, 7, 14), ("DS3_v2", 4, 14, 28),
             ("DS4_v2", 8, 28, 56), ("DS5_v2", 16, 56, 112), ("DS11_v2", 2, 14, 28), ("DS12_v2", 4, 28, 56),
             ("DS13_v2", 8, 56, 112), ("DS14_v2", 16, 112, 224)),
    *_series("standardDv2Family", 0, ("D1_v2", 1, 3.5, 50), ("D2_v2", 2, 7, 100), ("D3_v2", 4, 14, 200),
             ("D4_v2", 8, 28, 400), ("D5_v2", 16, 56, 800)),
    *_series("standardDSv3Family", 0, ("D2s_v3", 2, 8, 16), ("D4s_v3", 4, 16, 32), ("D8s_v3", 8, 32, 64),
             ("D16s_v3", 16, 64, 128), ("D32s_v3", 32, 128, 256), ("D64s_v3", 64, 256, 512)),
    *_series("standardDDSv4Family", 0, ("D2ds_v4", 2, 8, 75), ("D4ds_v4", 4, 16, 150), ("D8ds_v4", 8, 32, 300),
             ("D16ds_v4", 16, 64, 600), ("D32ds_v4", 32, 128, 1200), ("D64ds_v4", 64, 256, 2400)),
    *_series("standardESv3Family", 0, ("E2s_v3", 2, 16, 32), ("E4s_v3", 4, 32, 64), ("E8s_v3", 8, 64, 128),
             ("E16s_v3", 16, 128, 256), ("E32s_v3", 32, 256, 512), ("E64s_v3", 64, 432, 864)),
    *_series("standardEDSv4Family", 0, ("E2ds_v4", 2, 16, 75), ("E4ds_v4", 4, 32, 150), ("E8ds_v4", 8, 64, 300),
             ("E16ds_v4", 16, 128, 600), ("E32ds_v4", 32, 256, 1200), ("E64ds_v4", 64, 504, 2400)),
    *_series("standardFSv2Family", 0, ("F2s_v2", 2, 4, 16), ("F4s_v2", 4, 8, 32), ("F8s_v2", 8, 16, 64),
             ("F16s_v2", 16, 32, 128), ("F32s_v2", 32, 64, 256), ("F64s_v2", 64, 128, 512), ("F72s_v2", 72, 144, 576)),
    *_series("standardNCSv3Family", 1, ("NC6s_v3", 6, 112, 736)),
    *_series("standardNCSv3Family", 2, ("NC12s_v3", 12, 224, 1474)),
    *_series("standardNCSv3Family", 4, ("NC24s_v3", 24, 448, 2948), ("NC24rs_v3", 24, 448, 2948)),
    *_series("Standard NCASv3_T4 Family", 1, ("NC4as_T4_v3", 4, 28, 180), ("NC8as_T4_v3", 8, 56, 360),
             ("NC16as_T4_v3", 16, 110, 360)),
    *_series("Standard NCASv3_T4 Family", 4, ("NC64as_T4_v3", 64, 440, 2880)),
    *_series("StandardNCADSA100v4Family", 1, ("NC24ads_A100_v4", 24, 220, 64)),
    *_series("StandardNCADSA100v4Family", 2, ("NC48ads_A100_v4", 48, 440, 128)),
    *_series("StandardNCADSA100v4Family", 4, ("NC96ads_A100_v4", 96, 880, 256)),
    *_series("StandardNCadsH100v5Family", 1, ("NC40ads_H100_v5", 40, 320, 3576)),
    *_series("StandardNCadsH100v5Family", 2, ("NC80adis_H100_v5", 80, 640, 7152)),
    *_series("standardNDSv2Family", 8, ("ND40rs_v2", 40, 672, 2948)),
    *_series("Standard NDASv4_A100 Family", 8, ("ND96asr_v4", 96, 900, 6000)),
    *_series("Standard NDAMSv4_A100Family", 8, ("ND96amsr_A100_v4", 96, 1900, 6400)),
    *_series("standardNDSH100v5Family", 8, ("ND96isr_H100_v5", 96, 1900, 28000)),
]  # fmt: skip
BY_NAME = {size.name.lower(): size for size in VM_SIZES}
