"""What mrgen needs of the protocol in Siemens raw data: the numbers that an ISMRMRD header would hold.

A protocol is text of which a part, ASCCONV, has lines such as `sKSpace.lBaseResolution = 160` and another, XProtocol,
entries such as `<ParamLong."alRegridMode"> { 1 }`. It names the patient, the site and the operator: nothing but
numbers is ever taken from it. Patterns are bounded, as a protocol is foreign and may be made to be slow to search.
"""

from __future__ import annotations

import re
from math import inf, isfinite

from mrgen.errors import MrgenError
from mrgen.scans.header import FARTHEST, Header, require_cartesian

_EMBEDDED = 2  # sPat.ucRefScanMode where calibration lines are measured with the others
_NOISE_BANDWIDTH = 0.793  # of Siemens receivers (siemens_to_ismrmrd)
_TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral", 8: "propeller"}


def value(protocol: bytes, name: str, default: float, most: float = inf) -> float:
    """The number `name` of the protocol; `default` where it is missing, as protocols leave zeros out.

    Raises MrgenError unless it is one from 0 to `most`.
    """
    pattern = rb"^%b[ \t]{0,9}=[ \t]{0,9}([-+.\w]{1,30})" % re.escape(name.encode())
    found = re.search(pattern, protocol, re.MULTILINE)
    if found is None:
        return default
    text = found[1].decode(errors="replace")
    try:
        number = float(int(text, 16)) if text.lower().startswith("0x") else float(text)
    except ValueError:
        number = inf
    if not (0 <= number <= most and isfinite(number)):
        raise MrgenError(f"the protocol has {name} = {text}, expected a number from 0 to {most:g}: it is damaged")
    return number


def _oversampling(protocol: bytes) -> float:
    """The readout's oversampling factor, 2 unless the protocol says otherwise."""
    pattern = rb'"flReadoutOSFactor">\s{0,99}\{\s{0,99}(?:<Precision>\s{0,9}\d{1,3}\s{0,99})?(\d{1,2}(?:\.\d{1,9})?)'
    found = re.search(pattern, protocol)
    return max(1.0, float(found[1])) if found else 2.0


def protocol_header(protocol: bytes) -> Header:
    """What ISMRMRD's header would say of this protocol. Raises MrgenError for scans that are not Cartesian."""
    trajectory = int(value(protocol, "sKSpace.ucTrajectory", 1, 255))
    ramps = re.search(rb'"alRegridMode">\s{0,99}\{\s{0,99}[2-9]', protocol)
    epi = value(protocol, "sFastImaging.lEPIFactor", 1) > 1 or ramps
    require_cartesian("epi" if epi else _TRAJECTORIES.get(trajectory, "unknown"))
    if value(protocol, "sSliceAcceleration.lMultiBandFactor", 1) > 1:
        raise MrgenError("several slices were excited at once (multi-band), expected one: mrgen cannot separate them")
    base = int(value(protocol, "sKSpace.lBaseResolution", 0, 8192))
    lines = int(value(protocol, "sKSpace.lPhaseEncodingLines", 0, 8192))
    if not base or not lines:
        raise MrgenError("the protocol has no sKSpace.lBaseResolution and lPhaseEncodingLines: the file is damaged")
    volume = value(protocol, "sKSpace.ucDimension", 2) == 4
    partitions = int(value(protocol, "sKSpace.lPartitions", 1, 8192)) if volume else 1
    images = int(value(protocol, "sKSpace.lImagesPerSlab", partitions, 8192)) if volume else 1
    columns = round(base * _oversampling(protocol))
    wider = 1 + value(protocol, "sKSpace.dPhaseOversamplingForDialog", 0, 8)
    thicker = 1 + (value(protocol, "sKSpace.dSliceOversamplingForDialog", 0, 8) if volume else 0)
    slab = "sSliceArray.asSlice[0].d"
    fov = [value(protocol, slab + name, 0, FARTHEST) for name in ("ReadoutFOV", "PhaseFOV", "Thickness")]
    return Header(
        encoded=(columns, lines),
        recon=(base, round(lines / wider)),
        encoded_fov=(fov[0] * columns / base, fov[1] * wider) if all(fov) else None,
        recon_fov=(fov[0], fov[1]) if all(fov) else None,
        limits=None,
        partitions=(max(1, partitions), max(1, images)),
        slab=(fov[2] * thicker, fov[2]) if all(fov) else None,
        trajectory="cartesian",
        calibration="embedded" if value(protocol, "sPat.ucRefScanMode", 1) == _EMBEDDED else None,
        acceleration=(
            value(protocol, "sPat.lAccelFactPE", 1, 99) or 1.0,
            value(protocol, "sPat.lAccelFact3D", 1, 99) or 1.0,
        ),
        field_strength=value(protocol, "sProtConsistencyInfo.flNominalB0", 0) or None,
        noise_bandwidth=_NOISE_BANDWIDTH,
    )
