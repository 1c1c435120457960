"""Color maps for depth, the same tables as matplotlib's."""

import base64
import functools
import zlib

import numpy as np
import numpy.typing as npt

from mlx_depth.errors import OptionError, similar

# matplotlib's ``cm(range(256), bytes=True)``: red, green, blue as differences along the table, zlib, base 85.
# viridis, plasma, magma, inferno: van der Walt, Smith and Firing, CC0. turbo: Google, Apache-2.0.
# Spectral: ColorBrewer, Cynthia Brewer, Apache-2.0.
_TABLES = {
    "Spectral_r": (
        "c-nnYixGt|2tzuc8@%D(o+W-L6+{{WgzM>%_9r6HM3fsBXxs*4yU0pzFVa?kN?>tdM3_hbT!|oX+d0vF8^f-SV)`M=_V&QpRkn"
        "FE7YciZt!s4YU1mH|0apd?n~x&@(hNaiePZ=8ut$kO=Wjzyv9gK4M~(|}cQvZssSj&uBZ~ue<x=q"
    ),
    "viridis": (
        "c-oCp2@b>{2*moeeM0~L6zPJ41J-1hIY1MsrhG)2)5RpBOj9b8fmBxHRP0rP>tnb;GZ+z<(P4B&bgEYzna$6%)!IQGRh{{dkRR"
        ")PLk^|Tmq9^TLD-3RJi9)8y9m3dhMbyxbY6=bx|f`=Iy(w8x~3t<@?nI15jJYV0o8fA`0o#b6o?4"
    ),
    "plasma": (
        "c-nnYTMmRk2t#HQe>}Ix)=h>-+uczfEr^L&j?eHhoNSAvV34AnDMJ$UV8&!sS=TcdrV~VARtUQjX0#XVJtxxkmJuvJ-Rt5H{kQ"
        "OC`!IH(LM8}`6On`ZhG>IMISi>TVi$zC+e+Mkk~K0wibenTlD*LDQ)B35^7wML-2S@0%*37v"
    ),
    "magma": (
        "c-n1J2@b#@2!r|mH#6m~BBeAgAP$L$5BQ+3&q=YZ5Y9l8=mCoivZbpzoUA)-)6Jo71fnmQwPa43o&%>;MY+<MdRE1dS%zt_Tjm"
        "Jpnt~0$evrCRi_Z>(he0lGW%gRh>tIFjE$bn=t6Q{DOe2sA?h>RHbf6BxK3YPa0OM+J);wM<zTErzd;Ql;Ew="
    ),
    "inferno": (
        "c-oCp(H4au2m|r{{~uci#t3}6I7X%}z(hnH>Ihr##j$R0==ArC3OT;OZ-+CNN=)EFLgJ3_X%9TW0TMyIA-^z7xzbfAY6?+Jc)D"
        "%Vi|#PzTCHZsdv&Ak_2FvgxDZf<@zm|x=3ukcLepZ+l8j_r!AT^A<g5L6^B?kaT>#0El-%r$cm|ywYT|-<rTM$AD#J^#aI=l!_"
        "S-buFAIiip8"
    ),
    "turbo": (
        "c-m!>K@!6t2t^f5?7AoEzW2XXA_YFEjUR+bCc%gJ$(gb%AxKIZQ?eCeaj2`QchB-{(r@g4sYyhIim8^W?kWgkCQ|ocrf!S0h*k"
        "n(0-IB@Ei>j6T(%~jA>IgP>O+_MJ0M1)fZEX(GtLJthy&P<m2j*RKd(nR8tD9lkBA14_a=rq7QUL|bx0jM#JE)7_G+!2YNF#jO"
        "tl^uTJi3^Ex?0!;teY7f8*u<IbWV9uHy+!!p+f<`T@lS9Cwhh>!LC2*-&S{3n=JCIWEgCDg6URU1*R"
    ),
    "gray": ("c-muNBmfwg@M8!;0gcR}Kc8XL|0CM}0Dg1={r"),
    "gray_r": ("c-s5_pJ?!pfmVDd>)(F{GWih3zyJRk$l{Osf5iG90G}JX9{"),
}

COLORMAPS = tuple(_TABLES)
"""The names that ``apply_colormap`` knows; the first is the default."""


def apply_colormap(values: npt.NDArray[np.floating] | npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
    """Paint values with a color map.

    Args:
        values: ``(H, W)``: float in 0..1 (clipped; NaN counts as 0), or uint8 entries of the table.
        name: One of ``COLORMAPS``.
    Returns:
        RGB, ``(H, W, 3)``, uint8.
    Raises:
        OptionError: If no color map has that name, or the values are of another type.

    Same colors as ``matplotlib.colormaps[name](values, bytes=True)``.
    """
    table = colormap_table(name)
    if values.dtype == np.uint8:
        return table[values]
    if values.dtype.kind != "f":
        raise OptionError(f"values are {values.dtype}: give floats in 0..1, or uint8 entries of the color map.")
    entries = np.nan_to_num(np.clip(values, 0, 1), copy=False) * 256
    return table[np.minimum(entries, 255).astype(np.uint8)]


@functools.cache
def colormap_table(name: str) -> npt.NDArray[np.uint8]:
    """The 256 colors of a color map.

    Args:
        name: One of ``COLORMAPS``.
    Returns:
        RGB, ``(256, 3)``, uint8, read-only.
    Raises:
        OptionError: If no color map has that name.

    Same numbers as matplotlib's table.
    """
    if name not in _TABLES:
        close = similar(name, COLORMAPS)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise OptionError(f"no color map {name!r}: {hint}Choose one of {', '.join(COLORMAPS)}.")
    steps = np.frombuffer(zlib.decompress(base64.b85decode(_TABLES[name])), np.uint8).reshape(3, 256)
    table = np.ascontiguousarray(np.cumsum(steps, axis=1, dtype=np.uint8).T)  # uint8 wraps back, as the steps did
    table.flags.writeable = False
    return table
