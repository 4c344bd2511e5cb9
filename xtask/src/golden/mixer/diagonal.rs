//! The LRU of minimal-LRU and S5, each the recurrence alone or with a gate, a norm and a residual stream around it.

use anyhow::{Result, bail, ensure};
use elapid::config::Place;
use elapid::formats::stored::{Stored, file};
use elapid::layers::diagonal::Activation;
use elapid::layers::mamba1::Rule;
use elapid::layers::s5::CInit;
use elapid::layers::{LayerConfig, lru, s5};
use elapid::ops::Discretisation;
use elapid::settings::{Auto, Size};
use serde_json::Value;

use super::subject::{Class, Keys, Subject};

pub(super) const LRU: Class = Class { matches: |source, _| source.ends_with("model.py LRU"), subject: lru, also: None };
pub(super) const LRU_LAYER: Class =
    Class { matches: |source, _| source.ends_with("lru/model.py SequenceLayer"), subject: lru, also: None };
pub(super) const S5: Class = Class { matches: |source, _| source.ends_with("S5SSM"), subject: s5, also: None };
pub(super) const S5_LAYER: Class = Class {
    matches: |source, _| source.contains("S5SSM") && source.ends_with("SequenceLayer"),
    subject: s5,
    also: None,
};

/// flax's LayerNorm.
const EPS: f32 = 1e-6;

/// What is around the recurrence.
struct Block {
    /// Before all names of the recurrence.
    prefix: &'static str,
    activation: Activation,
    norm: Option<(Place, f32)>,
}

/// The block that `layer` describes; without one the recurrence alone. `read` reads what the class has beside `prenorm`.
fn block(keys: &mut Keys, read: fn(&mut Keys) -> Result<Activation>) -> Result<Block> {
    let mut keys = match keys.take("layer")? {
        Value::Null => return Ok(Block { prefix: "", activation: Activation::None, norm: None }),
        Value::Object(left) => Keys { left },
        other => bail!("config: `layer`: wanted an object or null, got {other}"),
    };
    let activation = read(&mut keys)?;
    let place = if keys.flag("prenorm")? { Place::Before } else { Place::Sum };
    keys.all_read()?;
    Ok(Block { prefix: "seq.", activation, norm: Some((place, EPS)) })
}

fn lru(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, n) = (keys.size("d")?, keys.size("d_hidden")?);
    let Block { prefix, activation, norm } = block(keys, |keys| {
        let norm = keys.word("norm")?;
        ensure!(norm == "layer", "config: `norm`: elapid has no `{norm}`: a row would depend on the batch");
        Ok(Activation::FullGlu)
    })?;
    let settings = lru::Settings {
        d_state: Auto::Is(Size::new(n)),
        activation,
        r_min: keys.real("r_min")? as f32,
        r_max: keys.real("r_max")? as f32,
        max_phase: keys.optional("max_phase").and_then(|x| x.as_f64()).unwrap_or(std::f64::consts::TAU) as f32,
        ..lru::Settings::default()
    };
    let of = |name: &str| file(format!("{prefix}{name}"));
    let halves = ["C_re", "C_im"].map(|name| (n, of(name).transposed()));
    let mut params = vec![
        ("nu_log", of("nu_log")),
        ("theta_log", of("theta_log")),
        ("gamma_log", of("gamma_log")),
        ("B", Stored::Rows(["B_re", "B_im"].map(|name| (n, of(name))).into())),
        ("C", Stored::Rows(halves.into()).transposed()),
        ("D", of("D")),
    ];
    params.extend(around(activation, d, norm.map(|_| "normalization")));
    Ok(Subject { layer: LayerConfig::lru(settings), d, params, start: 0, norm })
}

fn s5(keys: &mut Keys) -> Result<Subject> {
    keys.batch()?;
    let (d, all, n, blocks) = (keys.size("d")?, keys.size("P_full")?, keys.size("P")?, keys.size("J")?);
    let Block { prefix, activation, norm } = block(keys, |keys| {
        let batch = keys.optional("batchnorm").and_then(|x| x.as_bool()).unwrap_or(false);
        ensure!(!batch, "config: `batchnorm`: elapid has none: a row would depend on the batch");
        Ok(match keys.word("activation")?.as_str() {
            "gelu" => Activation::Gelu,
            "half_glu1" => Activation::HalfGlu1,
            "half_glu2" => Activation::HalfGlu2,
            "full_glu" => Activation::FullGlu,
            other => bail!("config: `activation`: elapid has no `{other}`"),
        })
    })?;
    let (conj_sym, both) = (keys.flag("conj_sym")?, keys.flag("bidirectional")?);
    ensure!(n * if conj_sym { 2 } else { 1 } == all, "config: `P`: {n} of {all} states");
    let c_init = match keys.word("C_init")?.as_str() {
        "trunc_standard_normal" => CInit::TruncStandardNormal,
        "lecun_normal" => CInit::LecunNormal,
        "complex_normal" => CInit::ComplexNormal,
        other => bail!("config: `C_init`: elapid has no `{other}`"),
    };
    let settings = s5::Settings {
        d_state: Auto::Is(Size::new(all)),
        blocks: Size::new(blocks),
        activation,
        discretisation: Rule(match keys.word("discretization")?.as_str() {
            "zoh" => Discretisation::Zoh,
            "bilinear" => Discretisation::Bilinear,
            other => bail!("config: `discretization`: elapid has no `{other}`"),
        }),
        conj_sym,
        clip_eigs: keys.flag("clip_eigs")?,
        bidirectional: both,
        step_rescale: keys.real("step_rescale")? as f32,
        c_init,
        dt_min: keys.real("dt_min")? as f32,
        dt_max: keys.real("dt_max")? as f32,
        ..s5::Settings::default()
    };
    let of = |name: &str| file(format!("{prefix}{name}"));
    let mut params = vec![
        ("Lambda_re", of("Lambda_re")),
        ("Lambda_im", of("Lambda_im")),
        ("log_step", of("log_step").shaped(&[n, 1])),
        ("B", of("B").shaped(&[n, d, 2]).transposed().viewed(&[2, n * d])),
        ("C", output(prefix, (d, n), both, c_init)),
        ("D", of("D")),
    ];
    params.extend(around(activation, d, norm.map(|_| "norm")));
    Ok(Subject { layer: LayerConfig::s5(settings), d, params, start: 0, norm })
}

/// C, there `[d n 2]` (C1 and C2, or both beside each other, for two directions), for ours `[d 2n]`, for each direction.
fn output(prefix: &str, (d, n): (usize, usize), both: bool, init: CInit) -> Stored {
    // Rows of one mode: its real part, then its imaginary one.
    let parts =
        |name: &str, n: usize| file(format!("{prefix}{name}")).shaped(&[d, n, 2]).transposed().grouped(n, &[1, 1]);
    let rows = match (both, init) {
        (false, _) => parts("C", n),
        (true, CInit::ComplexNormal) => parts("C", 2 * n).grouped(2, &[n, n]),
        (true, _) => Stored::Rows(["C1", "C2"].map(|name| (2 * n, parts(name, n))).into()),
    };
    rows.transposed()
}

/// The gate's products, whose kernels are `[in out]`, and the norm.
fn around(activation: Activation, d: usize, norm: Option<&str>) -> Vec<(&'static str, Stored)> {
    let names: &[&str] = match activation {
        Activation::None | Activation::Gelu => &[],
        Activation::HalfGlu1 | Activation::HalfGlu2 => &["out2"],
        Activation::FullGlu => &["out1", "out2"],
    };
    let mut params = Vec::new();
    if !names.is_empty() {
        let rows = |of: &dyn Fn(&str) -> Stored| Stored::Rows(names.iter().map(|name| (d, of(name))).collect());
        params.push(("out_proj.weight", rows(&|name| file(format!("{name}.kernel")).transposed())));
        params.push(("out_proj.bias", rows(&|name| file(format!("{name}.bias")))));
    }
    if let Some(norm) = norm {
        params.push(("layers.0.norm.weight", file(format!("{norm}.scale"))));
        params.push(("layers.0.norm.bias", file(format!("{norm}.bias"))));
    }
    params
}

/// Theirs `[b n 2]` for ours `[b 2n]`, real parts and then the imaginary parts of conjugates.
pub(super) fn conjugates(theirs: &[Vec<f32>], shape: &[usize]) -> Vec<f32> {
    let columns = shape.last().copied().unwrap_or(1);
    let row = |row: &[f32]| -> Vec<f32> {
        let modes = row.chunks(2);
        modes.clone().map(|x| x[0]).chain(modes.map(|x| -x[1])).collect()
    };
    theirs[0].chunks(columns).flat_map(row).collect()
}
