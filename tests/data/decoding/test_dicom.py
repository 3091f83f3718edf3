import builtins
import contextlib
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from finetune.data.cache.image_cache import ImageCache
from finetune.data.decoding import images
from finetune.data.decoding.images import BadImage, read_image
from finetune.errors import FinetuneError, MissingExtra
from finetune.preprocessing import Preprocessing
from tests.data.making import make_table, noise

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless  # noqa: E402

REAL = {  # file of the shared data -> what is special about it
    "Fake_MONOHR1.dcm": "MONOCHROME1 in 8 bits",
    "pydicom_693_UNCI.dcm": "signed, rescaled, windowed, with padding",
    "pydicom_JPGLosslessP14SV1_1s_1f_8b.dcm": "JPEG lossless",
    "pydicom_RG1_J2KI.dcm": "JPEG 2000, 15 bits, MONOCHROME1, windowed",
    "pydicom_RG3_J2KR.dcm": "JPEG 2000 lossless, 10 bits",
    "pydicom_mlut_18.dcm": "modality LUT",
    "pydicom_vlut_04.dcm": "VOI LUT",
    "rsna_6904.dcm": "a chest radiograph, JPEG",
}


@pytest.fixture
def put(tmp_path):
    """Write stored values as a DICOM file with further header elements, and give its path."""

    def put(values, *, name="x.dcm", syntax=ExplicitVRLittleEndian, compress=None, bits=None, **header):
        values = np.asarray(values)
        colour = values.ndim > 2 and values.shape[-1] == 3
        frames = values.ndim - colour > 2
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
        ds.Rows, ds.Columns = values.shape[frames : frames + 2]
        ds.SamplesPerPixel = 3 if colour else 1
        if frames:
            ds.NumberOfFrames = len(values)
        if colour:
            ds.PlanarConfiguration = 0
        ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        ds.BitsAllocated = 8 * values.itemsize
        ds.BitsStored = bits or 8 * values.itemsize
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(values.dtype.kind == "i")
        for key, value in header.items():
            setattr(ds, key, value)
        content = values.astype(values.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
        ds.PixelData = content + b"\0" * (len(content) % 2)
        ds["PixelData"].VR = "OB" if values.itemsize == 1 else "OW"
        if compress:
            ds.compress(compress, values.astype(values.dtype), generate_instance_uid=False)
        path = tmp_path / name
        ds.save_as(path, enforce_file_format=True)
        return path

    return put


def lut(first, entries, bits=16, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", vr, [int(e) for e in entries] if vr == "US" else bytes(entries))
    return Sequence([item])


GRAY = np.array([[0, 10, 200], [255, 30, 40]], np.uint8)
TWELVE = np.array([[0, 1000], [2048, 4095]], np.uint16)


def of(path) -> list:
    return read_image(path).tolist()


# -- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_real_files_equal_pydicoms_own_pipeline_rounded_to_8_bits(shared_data, name):
    path = shared_data / "dicom" / name
    image = read_image(path)
    ds = pydicom.dcmread(path)
    seen = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
    bits = ds.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)
    if "RescaleSlope" in ds:
        low, high = (float(ds.RescaleSlope * end + ds.RescaleIntercept) for end in (low, high))
    if "ModalityLUTSequence" in ds or "VOILUTSequence" in ds:
        low, high = 0, 2**16 - 1
    expected = np.floor((seen - low) / (high - low) * 255 + 0.5)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        expected = 255 - expected
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_a_real_radiograph_is_a_image_of_its_stored_values(shared_data):
    path = shared_data / "dicom" / "rsna_6904.dcm"  # 8 bits without a window: as they are
    np.testing.assert_array_equal(read_image(path), pydicom.dcmread(path).pixel_array)


# -- gray values ------------------------------------------------------------------------------------------------------


def test_without_a_window_the_range_of_the_bits_is_taken(put):
    assert of(put(GRAY)) == GRAY.tolist()
    # round(v * 255 / 4095): 1000 -> 62.27, 2048 -> 127.53
    assert of(put(TWELVE, bits=12)) == [[0, 62], [128, 255]]
    signed = np.array([[-2048, 0], [1, 2047]], np.int16)  # round((v + 2048) * 255 / 4095)
    assert of(put(signed, bits=12)) == [[0, 128], [128, 255]]
    assert of(put(np.array([[0, 60000]], np.uint16))) == [[0, 233]]


def test_rescaling_moves_values_before_the_window(put):
    # HU = 2 v - 1000; window 0 +- 50, LINEAR: (HU + 0.5) / 99 + 0.5
    values = np.array([[475, 476, 500], [524, 525, 4095]], np.uint16)
    path = put(values, bits=12, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="0", WindowWidth="100")
    # HU -50, -48, 0, 48, 50, 7190 -> 255 * (0, 2/99, 50/99, 98/99 (252.4), 1, 1)
    assert of(path) == [[0, 5, 129], [252, 255, 255]]


def test_a_negative_slope_turns_the_range_round(put):
    assert of(put(TWELVE, bits=12, RescaleSlope="-1", RescaleIntercept="0")) == [[255, 193], [127, 0]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR", [0, 57, 142, 227, 255]),  # (v - 4.5) / 9 + 0.5
        ("LINEAR_EXACT", [0, 51, 128, 204, 255]),  # (v - 5) / 10 + 0.5
        ("SIGMOID", [30, 59, 128, 196, 225]),  # 1 / (1 + exp(-4 (v - 5) / 10))
    ],
)
def test_each_kind_of_window(put, function, expected):
    path = put(np.array([[0, 2, 5, 8, 10]], np.uint8), WindowCenter="5", WindowWidth="10", VOILUTFunction=function)
    assert of(path) == [expected]


def test_of_several_windows_the_first_and_a_lut_before_a_window(put):
    values = np.array([[0, 50, 100]], np.uint8)
    several = {"WindowCenter": ["50", "10"], "WindowWidth": ["101", "5"]}
    assert of(put(values, **several)) == [[1, 129, 255]]  # (v - 49.5) / 100 + 0.5
    assert of(put(values, **several, VOILUTSequence=lut(0, [0] * 60 + [1023], bits=10))) == [[0, 0, 255]]
    assert of(put(values, WindowCenter="50", WindowWidth="1")) == [[0, 255, 255]]
    assert of(put(values, WindowCenter=None, WindowWidth=None)) == [[0, 50, 100]]


def test_luts_are_clamped_at_their_ends(put):
    values = np.array([[-9, -2, 0, 1, 9]], np.int16)
    path = put(values, ModalityLUTSequence=lut(-2, [0, 1000, 2000, 65535]))
    assert of(path) == [[0, 0, 8, 255, 255]]
    eight = np.arange(6, dtype=np.uint16).reshape(1, 6)
    table = [0, 10, 20, 30]
    assert of(put(eight, VOILUTSequence=lut(1, table, bits=8))) == [[0, 0, 10, 20, 30, 30]]
    assert of(put(eight, VOILUTSequence=lut(1, table, bits=8, vr="OW"))) == [[0, 0, 10, 20, 30, 30]]
    long = list(np.arange(400) % 256)  # more entries than 8 bits count
    assert of(put(np.array([[300]], np.uint16), VOILUTSequence=lut(0, long, bits=8))) == [[300 % 256]]


def test_monochrome1_is_inverted_last(put):
    assert of(put(GRAY, PhotometricInterpretation="MONOCHROME1")) == (255 - GRAY).tolist()
    header = {"WindowCenter": "20", "WindowWidth": "21", "PhotometricInterpretation": "MONOCHROME1"}
    plain = read_image(put(GRAY, **header | {"PhotometricInterpretation": "MONOCHROME2"}))
    np.testing.assert_array_equal(read_image(put(GRAY, **header)), 255 - plain)


def test_padding_is_black_whatever_the_colours(put):
    values = np.array([[0, 1, 2], [250, 254, 255]], np.uint8)
    assert of(put(values, PixelPaddingValue=255)) == [[0, 1, 2], [250, 254, 0]]
    dark = put(values, PixelPaddingValue=0, PixelPaddingRangeLimit=1, PhotometricInterpretation="MONOCHROME1")
    assert of(dark) == [[0, 0, 253], [5, 1, 0]]
    signed = np.array([[-2000, -1000, 1000]], np.int16)
    path = put(signed, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-2000)
    assert of(path)[0][0] == 0
    assert of(path)[0][1] > of(path)[0][2] > 0


def test_big_endian(put):
    assert of(put(TWELVE, bits=12, syntax=ExplicitVRBigEndian)) == [[0, 62], [128, 255]]


def test_rle_is_unpacked(put):
    deep = noise(16, 16).astype(np.uint16) * 16
    plain = read_image(put(deep, bits=12))
    np.testing.assert_array_equal(read_image(put(deep, bits=12, compress=RLELossless)), plain)
    coloured = noise(8, 8, 3)
    np.testing.assert_array_equal(read_image(put(coloured, compress=RLELossless)), coloured)


# -- colours ----------------------------------------------------------------------------------------------------------


def test_rgb_and_its_gray_and_its_16_bits(put):
    colour = noise(4, 6, 3)
    np.testing.assert_array_equal(read_image(put(colour)), colour)
    np.testing.assert_array_equal(read_image(put(np.stack([GRAY] * 3, -1))), GRAY)
    planes = colour.transpose(2, 0, 1).reshape(4, 6, 3)  # the same bytes, colour by colour
    np.testing.assert_array_equal(read_image(put(planes, PlanarConfiguration=1)), colour)
    deep = colour.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(put(deep)), colour)


def test_ybr_becomes_rgb(put):
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 200], [77, 77, 90]]], np.uint8)
    ycc = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    seen = read_image(put(ycc, PhotometricInterpretation="YBR_FULL")).astype(int)
    assert np.abs(seen - rgb).max() <= 2


def test_a_palette_gives_its_colours(put):
    header = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in {"Red": [0, 65535, 257], "Green": [0, 0, 257], "Blue": [65535, 0, 257 * 9]}.items():
        header[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        header[f"{colour}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    path = put(np.array([[0, 1, 2]], np.uint8), **header)
    assert of(path) == [[[0, 0, 255], [255, 0, 0], [1, 1, 9]]]
    ds = pydicom.dcmread(path)
    np.testing.assert_array_equal(read_image(path), apply_color_lut(ds.pixel_array, ds) // 257)


# -- frames -----------------------------------------------------------------------------------------------------------


def test_the_middle_frame_or_the_one_named(put):
    frames = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 2, 4), np.uint8)
    path = put(frames)
    assert of(path) == [[2] * 4] * 2
    for frame in range(5):
        assert of(f"{path}::frame/{frame}") == [[frame] * 4] * 2
    with pytest.raises(BadImage, match=r"::frame/5: has 5 frame\(s\), counted from 0"):
        read_image(f"{path}::frame/5")
    with pytest.raises(BadImage, match="is missing"):
        read_image(f"{path}.gone::frame/0")
    assert of(f"{put(GRAY, name='single')}::frame/0") == GRAY.tolist()  # the name's end does not matter
    Image.fromarray(GRAY).save(path.with_name("x.png"))
    with pytest.raises(BadImage, match="is not DICOM, and only that has frames"):
        read_image(f"{path.parent}/x.png::frame/0")


def test_enhanced_files_have_a_window_per_frame(put):
    def group(**rules):
        outer, inner = Dataset(), Dataset()
        for key, value in rules.items():
            setattr(inner, key, value)
        name = "FrameVOILUTSequence" if "WindowCenter" in rules else "PixelValueTransformationSequence"
        setattr(outer, name, Sequence([inner]))
        return outer

    shared = group(RescaleSlope="1", RescaleIntercept="-100", RescaleType="HU")
    windows = [group(WindowCenter=centre, WindowWidth="1") for centre in ("-50", "50")]
    values = np.array([[[20, 120, 220, 20]]] * 2, np.uint8)
    path = put(
        values,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(windows),
    )
    assert of(f"{path}::frame/0") == [[0, 255, 255, 0]]
    assert of(f"{path}::frame/1") == [[0, 0, 255, 0]]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_why(put, tmp_path):
    for header, reason in (
        ({"PhotometricInterpretation": "HSV"}, "has colours that are not read .Photometric Interpretation HSV"),
        ({"WindowCenter": "5", "WindowWidth": "0"}, "has a window of width 0"),
        ({"WindowCenter": "5", "WindowWidth": "9", "VOILUTFunction": "LOG"}, "VOI LUT Function LOG"),
        ({"Rows": 0}, "without an image"),
        ({"Rows": 30000, "Columns": 30000}, "claims 30,000 x 30,000 = 900 megapixels"),
        ({"VOILUTSequence": lut(0, [])}, "damaged"),
    ):
        with pytest.raises(BadImage, match=reason):
            read_image(put(GRAY, **header))
    with pytest.raises(BadImage, match="has uint32 values, which are not read"):
        read_image(put(GRAY.astype(np.uint32)))
    (tmp_path / "text.dcm").write_text("hello")
    with pytest.raises(BadImage, match=r"not an image in a known format .*DICOM"):
        read_image(tmp_path / "text.dcm")
    (tmp_path / "empty.dcm").write_bytes(b"")
    with pytest.raises(BadImage, match="is empty"):
        read_image(tmp_path / "empty.dcm")
    path = put(GRAY)
    Image.fromarray(GRAY).save(path, format="PNG")  # the content decides, not the name
    assert of(path) == GRAY.tolist()


@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9, 0.995])
@pytest.mark.parametrize("compress", [None, RLELossless])
def test_what_is_cut_short_is_refused(put, compress, kept):
    path = put(noise(64, 64), compress=compress)
    content = path.read_bytes()
    path.write_bytes(content[: max(140, int(len(content) * kept))])
    with pytest.raises(BadImage):
        read_image(path)


@pytest.mark.parametrize("name", REAL)
def test_real_files_cut_short_never_end_in_a_traceback(shared_data, tmp_path, name):
    content = (shared_data / "dicom" / name).read_bytes()
    for kept in (200, 600, 1500, len(content) // 2, len(content) - 20):
        (tmp_path / "x.dcm").write_bytes(content[:kept])
        with pytest.raises(BadImage) as caught:
            read_image(tmp_path / "x.dcm")
        assert len(caught.value.reason.splitlines()) == 1
        assert len(caught.value.reason) < 200


def test_damaged_headers_never_end_in_a_traceback(put):
    path, rng = (
        put(noise(8, 8).astype(np.uint16), WindowCenter="9", WindowWidth="20", bits=12),
        np.random.default_rng(0),
    )
    content = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(132, len(content), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(BadImage), warnings.catch_warnings(action="ignore"):
            assert read_image(path).dtype == np.uint8


def test_video_is_not_read(put):
    path = put(GRAY)
    content, video = path.read_bytes(), b"1.2.840.10008.1.2.4.100"
    known, length = str(ExplicitVRLittleEndian).encode() + b"\0", len(video) + 1
    as_video = content.replace(b"UI" + bytes([len(known), 0]) + known, b"UI" + bytes([length, 0]) + video + b"\0", 1)
    group = content.index(b"\x02\0\0\0UL\x04\0") + 8  # the length of all elements of the file's own header
    grown = int.from_bytes(as_video[group : group + 4], "little") + length - len(known)
    path.write_bytes(as_video[:group] + grown.to_bytes(4, "little") + as_video[group + 4 :])
    with pytest.raises(BadImage, match=r"stored in a way that is not read \(MPEG2"):
        read_image(path)


def test_a_missing_package_is_one_error_that_names_the_extra(put, monkeypatch):
    path, real = put(GRAY), builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r'is DICOM, which needs pydicom: pip install -e "\.\[dicom\]"') as caught:
        read_image(path)
    assert not isinstance(caught.value, BadImage)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    table = make_table(path.parent, paths=["x.dcm"], splits=["train"])
    with pytest.raises(FinetuneError, match=r"\[dicom\]"):  # on_bad=skip must not leave them all out
        ImageCache.build(table, Preprocessing(image_size=4), on_bad="skip")


def test_a_missing_decoder_names_the_extra_too(put, monkeypatch):
    path = put(GRAY, compress=RLELossless)

    class Without:
        is_available = False

    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: Without)
    with pytest.raises(MissingExtra, match=r"compressed as RLE Lossless, which needs a decoder: pip install"):
        read_image(path)


def test_dicom_goes_through_the_cache_like_any_image(put):
    frames = noise(3, 8, 8)
    path = put(frames)
    table = make_table(path.parent, paths=["x.dcm", "x.dcm::frame/0"], splits=["train", "train"])
    cache = ImageCache.build(table.check(), Preprocessing(image_size=8))
    np.testing.assert_array_equal(cache[0], frames[1])
    np.testing.assert_array_equal(cache[1], frames[0])
    assert ".dcm" in images.IMAGE_SUFFIXES
