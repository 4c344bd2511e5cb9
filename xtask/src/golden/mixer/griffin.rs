//! Griffin's recurrent block, and its RG-LRU alone.

use anyhow::{Result, ensure};
use elapid::formats::stored::{Stored, file};
use elapid::layers::{LayerConfig, rg_lru};
use elapid::settings::{Auto, Size};

use super::subject::{Class, Keys, Subject};

pub(super) const RG_LRU: Class = Class { matches: |source, _| source.ends_with("RGLRU"), subject: alone, also: None };
pub(super) const BLOCK: Class =
    Class { matches: |source, _| source.ends_with("RecurrentBlock"), subject: block, also: None };

fn alone(keys: &mut Keys) -> Result<Subject> {
    let (d, width) = (keys.size("d")?, keys.size("lru_width")?);
    ensure!(d == width && keys.take("conv1d_temporal_width")?.is_null(), "config: wanted the recurrence alone");
    let settings = rg_lru::Settings { block: false, ..rg_lru::Settings::default() };
    subject(keys, (d, width), settings, "", Vec::new())
}

fn block(keys: &mut Keys) -> Result<Subject> {
    let (d, width, taps) = (keys.size("d")?, keys.size("lru_width")?, keys.size("conv1d_temporal_width")?);
    let settings =
        rg_lru::Settings { width: Auto::Is(Size::new(width)), d_conv: Size::new(taps), ..rg_lru::Settings::default() };
    let both = |kind: &str| Stored::Rows(["x", "y"].map(|name| (width, file(format!("linear_{name}.{kind}")))).into());
    let params = vec![
        ("in_proj.weight", both("weight")),
        ("in_proj.bias", both("bias")),
        // `[taps width]`, for ours `[width 1 taps]`.
        ("conv1d.weight", file("conv_1d.w").transposed().viewed(&[width, taps])),
        ("conv1d.bias", file("conv_1d.b")),
        ("out_proj.weight", file("linear_out.weight")),
        ("out_proj.bias", file("linear_out.bias")),
    ];
    subject(keys, (d, width), settings, "rg_lru.", params)
}

fn subject(
    keys: &mut Keys,
    (d, width): (usize, usize),
    settings: rg_lru::Settings,
    prefix: &str,
    mut params: Vec<(&'static str, Stored)>,
) -> Result<Subject> {
    keys.batch()?;
    // `segment_pos` says the same.
    keys.take("resets")?;
    let (heads, start) = (keys.size("heads")?, keys.size("init_position")? as u64);
    ensure!(width.is_multiple_of(heads), "config: `heads`: {heads} of {width} channels");
    let weight = |name: &str| file(format!("{prefix}{name}.w")).transposed();
    let bias = |name: &str| file(format!("{prefix}{name}.b")).shaped(&[heads, width / heads]);
    params.extend([
        ("a_gate.weight", weight("a_gate")),
        ("a_gate.bias", bias("a_gate")),
        ("input_gate.weight", weight("input_gate")),
        ("input_gate.bias", bias("input_gate")),
        ("Lambda", file(format!("{prefix}a_param"))),
    ]);
    let layer = LayerConfig::rg_lru(rg_lru::Settings { heads: Size::new(heads), ..settings });
    Ok(Subject { layer, d, params, start, norm: None })
}
