"""Codes of languages as clients write them, and names."""

import pytest

from mlx_transformer.server.language_codes import client_codes, distinct_codes, find_code, language_name

NLLB = ["arb_Arab", "ary_Arab", "fra_Latn", "kas_Arab", "kas_Deva", "nob_Latn", "tur_Latn", "zho_Hans", "zho_Hant"]
M2M100 = ["ar", "fr", "he", "no", "pt", "zh"]
MBART = ["ar_AR", "fr_XX", "pt_XX", "zh_CN"]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (NLLB, ["ar", "ary", "fr", "ks-Arab", "ks-Deva", "no", "tr", "zh-Hans", "zh-Hant"]),
        (M2M100, M2M100),
        (MBART, ["ar", "fr", "pt", "zh"]),
        (["unknown", "xx_YY"], ["unknown", "xx"]),
    ],
)
def test_each_language_has_one_short_code_and_its_own(own, expected):
    codes = client_codes(own)
    assert distinct_codes(codes) == expected
    assert all(codes[code] == code for code in own)
    assert [codes[code] for code in expected] == own


def test_a_pair_without_codes_of_its_own():
    assert distinct_codes({"en": None, "fr": None}) == ["en", "fr"]


@pytest.mark.parametrize(
    ("code", "own"),
    [
        ("tr", "tur_Latn"),
        ("TR-tr", "tur_Latn"),
        ("nb", "nob_Latn"),
        ("no", "nob_Latn"),
        ("ar-EG", "arb_Arab"),
        ("ary", "ary_Arab"),
        ("zh", "zho_Hans"),
        ("zt", "zho_Hant"),
        ("zho_Hant", "zho_Hant"),
        ("ks-deva", "kas_Deva"),
        ("ks", None),  # in which script?
        ("de", None),
        ("", None),
    ],
)
def test_codes_of_clients_are_found(code, own):
    codes = client_codes(NLLB)
    found = find_code(code, codes)
    assert (codes[found] if found else None) == own


@pytest.mark.parametrize(
    ("code", "own"),
    [("zh-Hans", "zh_CN"), ("zh-TW", "zh_CN"), ("pb", "pt_XX"), ("pt-BR", "pt_XX"), ("fra_Latn", "fr_XX")],
)
def test_a_language_without_the_script_or_region_is_found(code, own):
    codes = client_codes(MBART)
    assert codes[find_code(code, codes)] == own


def test_old_codes():
    assert find_code("iw", M2M100) == "he"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("fr", "French"),
        ("tur_Latn", "Turkish (Latn)"),
        ("zh-Hant", "Chinese (traditional)"),
        ("crh", "Crimean Tatar"),
        ("qqq-Latn", "qqq-Latn"),
        ("", ""),
    ],
)
def test_names(code, name):
    assert language_name(code) == name
