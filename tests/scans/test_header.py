from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import suppress

import pytest

from mrgen.errors import MrgenError
from mrgen.scans.header import Header, anonymous_header, parse_header, require_cartesian

FULL = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:x="y" x:who="Doe">
 <!-- Jane Doe -->
 <subjectInformation><patientName>Doe^Jane</patientName></subjectInformation>
 <measurementInformation><patientPosition>HFS</patientPosition><protocolName>Jane</protocolName></measurementInformation>
 <acquisitionSystemInformation><systemVendor who="Doe">ACME</systemVendor><institutionName>Somewhere</institutionName>
  <systemFieldStrength_T>2.89</systemFieldStrength_T>
  <relativeReceiverNoiseBandwidth>0.793</relativeReceiverNoiseBandwidth></acquisitionSystemInformation>
 <encoding>Doe
  <encodedSpace><matrixSize><x>384</x><y>144</y><z>20</z></matrixSize>
   <fieldOfView_mm><x>560</x><y>210</y><z>60.0</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>192</x><y>144</y><z>16</z></matrixSize>
   <fieldOfView_mm><x>280</x><y>210</y><z>48</z></fieldOfView_mm></reconSpace>
  <trajectory>Cartesian</trajectory>
  <trajectoryDescription><identifier>Doe</identifier></trajectoryDescription>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>105</maximum><center>54</center>
   </kspace_encoding_step_1><kspace_encoding_step_2><maximum>18</maximum><center>9</center></kspace_encoding_step_2>
  </encodingLimits>
  <parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>
   <kspace_encoding_step_2>2</kspace_encoding_step_2></accelerationFactor>
   <calibrationMode>embedded</calibrationMode></parallelImaging>
 </encoding>
 <encoding>
  <encodedSpace><matrixSize><x>64</x><y>32</y></matrixSize></encodedSpace>
  <reconSpace><matrixSize><x>32</x><y>32</y></matrixSize></reconSpace>
 </encoding>
 <userParameters><userParameterString><name>who</name><value>Doe</value></userParameterString></userParameters>
</ismrmrdHeader>"""


def test_every_number_is_read():
    assert parse_header(FULL) == Header(
        encoded=(384, 144),
        recon=(192, 144),
        encoded_fov=(560, 210),
        recon_fov=(280, 210),
        limits=(54, 105),
        partitions=(20, 16),
        slab=(60, 48),
        partition_centre=9,
        trajectory="cartesian",
        calibration="embedded",
        acceleration=(3, 2),
        field_strength=2.89,
        noise_bandwidth=0.793,
    )


def test_what_is_missing_has_a_default():
    second = parse_header(FULL, 1)
    assert second == Header((64, 32), (32, 32), None, None, None, field_strength=2.89, noise_bandwidth=0.793)
    assert (second.partitions, second.acceleration) == ((1, 1), (1, 1))
    with pytest.raises(MrgenError, match="has 2 encodings, the data use number 2"):
        parse_header(FULL, 2)


def test_crop_and_padding():
    header = parse_header(FULL)
    assert [header.cropped(axis, n) for axis, n in enumerate(header.encoded)] == [192, 144]
    assert header.cropped(2, 20) == 16
    assert header.cropped(0, 300) == 300  # not the encoded matrix
    coarse = parse_header(FULL.replace("<z>48</z>", "<z>60</z>").replace("<x>280</x>", "<x>560</x>"))
    assert (coarse.cropped(0, 384), coarse.cropped(2, 20)) == (384, 20)  # coarser pixels, not a smaller field of view
    assert header.cropped(2, 1) == 1  # slices excited one by one
    unsized = parse_header(FULL.replace("<z>60.0</z>", ""))  # of no field of view across the slices
    assert (unsized.slab, unsized.cropped(2, 20)) == (None, 16)
    flat = parse_header(FULL, 1)
    assert [flat.cropped(axis, n) for axis, n in enumerate((64, 32, 1))] == [32, 32, 1]
    assert parse_header(FULL.replace("<z>20</z>", "<z>1</z>")).cropped(2, 1) == 1  # recon z: the number of slices
    assert header.padding(144) == (72 - 54, 144 - 18 - 106)
    assert header.padding(100) == (0, 0)


def test_nothing_that_identifies_a_person_is_kept():
    kept = anonymous_header(FULL)
    for secret in ("Doe", "Jane", "Somewhere", "who"):
        assert secret not in kept
    assert "<patientPosition>HFS</patientPosition>" in kept
    assert "<systemVendor>ACME</systemVendor>" in kept
    assert ET.fromstring(kept).find("{http://www.ismrm.org/ISMRMRD}encoding") is not None
    assert [parse_header(kept, i) for i in range(2)] == [parse_header(FULL, i) for i in range(2)]
    assert anonymous_header(kept) == kept


def test_headers_of_any_namespace_get_that_of_ismrmrd():
    plain = FULL.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', "")
    mixed = FULL.replace("<encoding>Doe", '<encoding xmlns="urn:z">')
    assert anonymous_header(plain) == anonymous_header(mixed) == anonymous_header(FULL)


EXPANDING = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
DEEP = "<encodedSpace>" * 100_000 + "</encodedSpace>" * 100_000


@pytest.mark.parametrize(
    ("xml", "match"),
    [
        (f'<!DOCTYPE b [<!ENTITY a0 "lol">{EXPANDING}]><b>&a9;</b>', "declares a document type or entities"),
        ('<!DOCTYPE b SYSTEM "file:///etc/passwd"><b/>', "declares a document type"),
        ("<b>&outside;</b>", "not valid XML"),
        ("<a><b></a>", "not valid XML"),
        ("", "not valid XML"),
        ("\ud800", "not valid XML"),
        (FULL.encode("utf-16").decode("utf-8", errors="replace"), "not valid XML"),
        ("x" * 2**23, "has 8388608 characters"),
        (f"<b><encoding>{DEEP}</encoding></b>", "no usable encoding/encodedSpace/matrixSize"),
        ("<ismrmrdHeader/>", "no usable encoding/encodedSpace/matrixSize"),
        (FULL.replace("<y>144</y>", ""), "no usable encoding/encodedSpace/matrixSize"),
        (FULL.replace("<x>192</x>", "<x>0</x>"), "no usable encoding/reconSpace/matrixSize"),
        (FULL.replace("<x>384</x>", "<x>many</x>"), "something else than a number at encodedSpace/matrixSize/x"),
        (FULL.replace("<x>384</x>", "<x>-384</x>"), "matrixSize/x = -384, expected 0 to 65535"),
        (FULL.replace("<x>384</x>", "<x>1e9</x>"), r"matrixSize/x = 1e\+09, expected 0 to 65535"),
        (FULL.replace("<x>384</x>", f"<x>{'9' * 5000}</x>"), "matrixSize/x = inf"),
        (FULL.replace("<z>20</z>", "<z>nan</z>"), "matrixSize/z = nan"),
        (FULL.replace("<x>560</x>", "<x>inf</x>"), "fieldOfView_mm/x = inf"),
        (FULL.replace("<z>60.0</z>", "<z>-60</z>"), "fieldOfView_mm/z = -60"),
        (FULL.replace("<center>54", "<center>-1"), "kspace_encoding_step_1/center = -1"),
        (FULL.replace("2.89", "three"), "systemFieldStrength_T"),
        (FULL.replace("0.793", "7.93"), "relativeReceiverNoiseBandwidth = 7.93, expected 0 to 1"),
    ],
)
def test_hostile_and_broken_headers_are_refused(xml, match):
    with pytest.raises(MrgenError, match=match) as caught:
        parse_header(xml)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    with suppress(MrgenError):
        anonymous_header(xml)


def test_only_cartesian_trajectories_pass():
    require_cartesian("cartesian")
    require_cartesian(None)
    with pytest.raises(MrgenError, match=r"'epi' \(echo"):
        require_cartesian("epi")
    with pytest.raises(MrgenError, match="'spiral', expected 'cartesian'"):
        require_cartesian("spiral")
