//! Short convolutions: zoology's BaseConv, and Based's gated one.

use anyhow::{Result, ensure};
use elapid::formats::stored::file;
use elapid::layers::{LayerConfig, base_conv, gated_conv};
use elapid::settings::Size;

use super::subject::{Class, Keys, Subject};

pub(super) const BASE_CONV: Class =
    Class { matches: |source, _| source.contains("base_conv.py BaseConv"), subject: base, also: None };
pub(super) const GATED_CONV: Class =
    Class { matches: |source, _| source.contains("convolution.py BaseConv"), subject: gated, also: None };

fn base(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let d = keys.size("d")?;
    let settings = base_conv::Settings { d_conv: Size::new(keys.size("kernel_size")?), silu: keys.flag("use_act")? };
    let params = vec![
        ("conv1d.weight", file("conv.conv.weight")),
        ("conv1d.bias", file("conv.conv.bias")),
        ("proj.weight", file("projection.weight")),
        ("proj.bias", file("projection.bias")),
    ];
    Ok(Subject { layer: LayerConfig::base_conv(settings), d, params, start: 0, norm: None })
}

fn gated(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, inner, expand) = (keys.size("d")?, keys.size("d_inner")?, keys.size("expand_proj")?);
    ensure!(2 * inner == expand * d && inner.is_multiple_of(d), "config: `d_inner`: {inner} of {d} channels");
    let bias = keys.flag("use_bias")?;
    let settings = gated_conv::Settings {
        d_conv: Size::new(keys.size("kernel_size")?),
        expand: Size::new(inner / d),
        bias,
        ..gated_conv::Settings::default()
    };
    let mut params = vec![
        ("conv1d.weight", file("conv.conv.weight")),
        ("in_proj.weight", file("in_proj.weight")),
        ("out_proj.weight", file("out_proj.weight")),
    ];
    if bias {
        params.extend([("in_proj.bias", file("in_proj.bias")), ("out_proj.bias", file("out_proj.bias"))]);
    }
    Ok(Subject { layer: LayerConfig::gated_conv(settings), d, params, start: 0, norm: None })
}
