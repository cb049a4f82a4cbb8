"""Where the public data sets are downloaded: a table. Add a mirror by adding its address.

Every address of an archive serves the same bytes, or, where `members` are listed, the same files inside a zip. The
checksums were published by projects that verify these downloads; an archive without any is checked by the CRCs of its
zip, and its SHA-256 is printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared_attn.runtime.download import Archive


@dataclass(frozen=True)
class CloudArchive(Archive):
    """A download of point clouds. shapes: how many the official training and test splits hold."""

    shapes: tuple[int, int] = field(kw_only=True)


_MODELNET40 = CloudArchive(
    file="ModelNet40.zip",
    folder="ModelNet40",
    urls=(
        "https://modelnet.cs.princeton.edu/ModelNet40.zip",
        "http://modelnet.cs.princeton.edu/ModelNet40.zip",
        "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet40.zip",
        "http://vision.princeton.edu/projects/2014/3DShapeNets/ModelNet40.zip",
    ),
    shapes=(9843, 2468),
    sha256="42dc3e656932e387f554e25a4eb2cc0e1a1bd3ab54606e2a9eae444c60e536ac",
)
_MODELNET10 = CloudArchive(
    file="ModelNet10.zip",
    folder="ModelNet10",
    urls=(
        "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
        "https://3dshapenets.cs.princeton.edu/ModelNet10.zip",
        "http://vision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
        "https://huggingface.co/datasets/Msun/modelnet10/resolve/main/ModelNet10.zip",
    ),
    shapes=(3991, 908),
    sha256="9d8679435fc07d1d26f13009878db164a7aa8ea5e7ea3c8880e42794b7307d51",
)
_MODELNET40_HDF5 = CloudArchive(
    file="modelnet40_ply_hdf5_2048.zip",
    folder="modelnet40_ply_hdf5_2048",
    urls=(
        "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
        "https://huggingface.co/datasets/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip",
        "https://github.com/ma-xu/pointMLP-pytorch/releases/download/Modenet40_dataset/modelnet40_ply_hdf5_2048.zip",
    ),
    shapes=(9840, 2468),
    members={
        "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
        "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
        "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
        "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
        "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
        "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
        "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
    },
)
_RESAMPLED_URLS = (
    "https://shapenet.cs.stanford.edu/media/modelnet40_normal_resampled.zip",
    "http://shapenet.cs.stanford.edu/media/modelnet40_normal_resampled.zip",
)
_SHAPENETPART = CloudArchive(
    file="shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
    folder="shapenetcore_partanno_segmentation_benchmark_v0_normal",
    urls=(
        "https://shapenet.cs.stanford.edu/media/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        "https://huggingface.co/datasets/cminst/ShapeNet/resolve/main/"
        "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        "https://omnomnom.vision.rwth-aachen.de/data/point2vec/data/"
        "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
    ),
    shapes=(14007, 2874),
    sha256="0e26411700bae2da38ee8ecc719ba4db2e6e0133486e258665952ad5dfced0fe",
)
_SHAPENETPART_HDF5 = CloudArchive(
    file="shapenet_part_seg_hdf5_data.zip",
    folder="hdf5_data",
    urls=(
        "https://shapenet.cs.stanford.edu/media/shapenet_part_seg_hdf5_data.zip",
        "http://shapenet.cs.stanford.edu/media/shapenet_part_seg_hdf5_data.zip",
    ),
    shapes=(14007, 2874),
    members={
        "ply_data_train0.h5": "e7152ff588ae6c87eb1156823df05855",
        "ply_data_train1.h5": "b4894a082211418b61b5a707fedb4f56",
        "ply_data_train2.h5": "508eeeee96053b90388520c37df3a8b8",
        "ply_data_train3.h5": "88574c3d5c61d0f3156b9e02cd6cda03",
        "ply_data_train4.h5": "418cb01104740bf1353b792331cb5878",
        "ply_data_train5.h5": "26e65c8827b08f7c340cd03f902e27e8",
        "ply_data_val0.h5": "628b4b3cbc17765de2114d104e51b9c9",
        "ply_data_test0.h5": "fa3fb32b179128ede32c2c948ed83efc",
        "ply_data_test1.h5": "5eb63ae378831c665282c8f22b6c1249",
    },
)


def _resampled(train: int, test: int) -> CloudArchive:
    name = "modelnet40_normal_resampled"
    return CloudArchive(file=f"{name}.zip", folder=name, urls=_RESAMPLED_URLS, shapes=(train, test))


# Data set -> release -> archive; the first release is the one taken where nothing else is asked for.
ARCHIVES: dict[str, dict[str, CloudArchive]] = {
    "modelnet40": {"off": _MODELNET40, "hdf5": _MODELNET40_HDF5, "text": _resampled(9843, 2468)},
    "modelnet10": {"off": _MODELNET10, "text": _resampled(3991, 908)},
    "shapenetpart": {"text": _SHAPENETPART, "hdf5": _SHAPENETPART_HDF5},
}
