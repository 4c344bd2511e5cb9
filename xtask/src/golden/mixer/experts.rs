//! Mixtures of experts: Switch and top-k of llm-random, which give the assignments that fit the capacity, and BlackMamba's.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use elapid::Tensor;
use elapid::autograd::Tape;
use elapid::formats::stored::{Stored, file};
use elapid::layers::LayerConfig;
use elapid::layers::mlp::Activation;
use elapid::layers::moe::{Scores, Settings};
use elapid::ops::{Experts, Function, Router, balance, linear, mixture, route, sort, spread};
use elapid::params::ParamGrads;
use elapid::settings::{Auto, Size};
use elapid_kernels::experts::NOWHERE;
use elapid_kernels::router::Indices;

use super::subject::{Class, Keys, Subject};
use crate::golden::record::{Golden, Report};

/// Experts picked by tokens, with a capacity.
pub(super) const TOKEN_CHOICE: Class =
    Class { matches: |source, _| source.ends_with("TokenChoiceFF"), subject: token_choice, also: Some(with_capacity) };

/// BlackMamba's.
pub(super) const BLACK_MAMBA: Class =
    Class { matches: |source, _| source.contains("SwitchMLP"), subject: black_mamba, also: None };

fn token_choice(keys: &mut Keys) -> Result<Subject> {
    let (d, experts, width) = (keys.size("d")?, keys.size("experts")?, keys.size("expert_size")?);
    let (top_k, gate) = (keys.size("routing_top_k")?, keys.flag("gated")?);
    keys.size("b")?;
    keys.size("l")?;
    // What fits is given; see `with_capacity`.
    keys.real("capacity_factor")?;
    keys.size("capacity")?;
    let settings = Settings {
        experts: Size::new(experts),
        top_k: Size::new(top_k),
        width: Auto::Is(Size::new(width)),
        activation: if gate { Activation::Silu } else { Activation::Relu },
        gate,
        renormalise: false,
        balance: keys.real("load_balancing_loss_weight")? as f32,
        ..Settings::default()
    };
    let matrix = |name: &str, e: usize| file(format!("expert_inner_function.{name}_weight[{e}]")).transposed();
    let up = |e: usize| match gate {
        true => Stored::Rows(vec![(width, matrix("gate", e)), (width, matrix("lin1", e))]),
        false => matrix("lin1", e),
    };
    let params = vec![
        ("router.weight", file("gating.gate").transposed()),
        ("experts.up", Stored::Stack((0..experts).map(up).collect())),
        ("experts.down", Stored::Stack((0..experts).map(|e| matrix("lin2", e)).collect())),
    ];
    Ok(Subject { layer: LayerConfig::moe(settings), d, params, start: 0, norm: None })
}

fn black_mamba(keys: &mut Keys) -> Result<Subject> {
    let (d, experts, width) = (keys.size("d")?, keys.size("experts")?, keys.size("ffn_hidden_size")?);
    keys.size("b")?;
    keys.size("l")?;
    ensure!(!keys.flag("add_bias_linear")?, "config: `add_bias_linear`: elapid's experts have no biases");
    ensure!(keys.word("activation")? == "silu", "config: `activation`: wanted silu");
    let settings = Settings {
        experts: Size::new(experts),
        top_k: Size::new(1),
        width: Auto::Is(Size::new(width)),
        gate: keys.flag("gated_linear_unit")?,
        router: Scores::Sigmoid,
        router_bias: true,
        renormalise: false,
        ..Settings::default()
    };
    let each =
        |name: &str| Stored::Stack((0..experts).map(|e| file(format!("local_experts.{e}.{name}.weight"))).collect());
    let params = vec![
        ("router.weight", file("router.weight")),
        ("router.bias", file("router.bias")),
        ("experts.up", each("linear_fc1")),
        ("experts.down", each("linear_fc2")),
    ];
    Ok(Subject { layer: LayerConfig::moe(settings), d, params, start: 0, norm: None })
}

/// The operations of the layer, with the assignments that fit; the loss of the router. The layer computes the same where the file
/// says that nothing was dropped.
fn with_capacity(golden: &Golden<'_>, subject: &Subject, report: &mut Report) -> Result<bool> {
    let settings: &Settings = subject.layer.settings().context("no mixture of experts")?;
    let (d, experts, k) = (subject.d, settings.experts.get(), settings.top_k.get());
    let tape = Arc::new(Tape::new());
    let x = tape.leaf(Tensor::new(golden.singles("x")?, &golden.shape("x")?));
    let rows = if settings.gate { 2 } else { 1 } * settings.width.or(Size::new(1)).get();
    let shapes = [vec![experts, d], vec![experts, rows, d], vec![experts, d, settings.width.or(Size::new(1)).get()]];
    let mut leaves = Vec::new();
    for ((_, stored), shape) in subject.params.iter().zip(&shapes) {
        let values = stored.read(shape, &mut |theirs, _| golden.singles(&format!("param.{theirs}")))?;
        leaves.push(tape.leaf(Tensor::new(values, shape)));
    }
    let [gate, up, down] = leaves.as_slice() else { unreachable!("three parameters") };

    let logits = linear(&x, gate, None)?;
    let router = Router::top(k);
    let (picked, weights) = route(&logits, router, None)?;
    let want = golden.ids("expert")?;
    let Indices::Host(picks) = &*picked else { unreachable!("on the CPU") };
    let same = want.iter().zip(picks).filter(|(want, got)| want == got).count();
    report.line("expert", same == want.len(), format!("{same} of {} equal", want.len()));
    let kept = golden.ids("kept")?;
    let fits = |at: usize| kept[at / k * experts + picks[at] as usize] == 1;
    let fitting = (0..picks.len()).map(|at| if fits(at) { picks[at] } else { NOWHERE }).collect();
    let order = sort(&Arc::new(Indices::Host(fitting)), &router, experts, 0.0)?;
    let function = if settings.gate { Function::Silu } else { Function::Relu };
    let experts = Experts { up: up.clone(), down: down.clone(), activation: function, gate: settings.gate };
    let y = mixture(&x, &order, &weights, &experts)?;
    report.close("y", &golden.floats("y")?, &y.value().to_vec()?);
    let aux = balance(&[spread(&logits, &picked)?])?;
    let weighted: Vec<f32> = aux.value().to_vec()?.iter().map(|aux| settings.balance * aux).collect();
    report.close("aux", &golden.floats("aux")?, &weighted);

    let dy = Tensor::new(golden.singles("dy")?, y.shape());
    let daux = Tensor::new(vec![settings.balance], &[1]);
    let dx = |grads: &mut elapid::autograd::Grads| -> Result<Vec<f32>> {
        Ok(grads.take(&x)?.context("no gradient of x")?.to_vec()?)
    };
    let mut grads = tape.backward_from(&[(&y, dy), (&aux, daux)], &mut ParamGrads::default())?;
    let [mut both, of_y, of_aux] = [dx(&mut grads)?, golden.singles("dx")?, golden.singles("aux.dx")?];
    let sum: Vec<f64> = of_y.iter().zip(&of_aux).map(|(y, aux)| f64::from(*y) + f64::from(*aux)).collect();
    report.close("dx + aux.dx", &sum, &both);
    for (((name, stored), shape), leaf) in subject.params.iter().zip(&shapes).zip(&leaves) {
        both = grads.take(leaf)?.with_context(|| format!("no gradient of {name}"))?.to_vec()?;
        stored.write(shape, &both, &mut |theirs, _, values| {
            let [of_y, of_aux] =
                [format!("grad.{theirs}"), format!("aux.grad.{theirs}")].map(|name| golden.floats(&name));
            let sum: Vec<f64> = of_y?.into_iter().zip(of_aux?).map(|(y, aux)| y + aux).collect();
            report.close(&format!("grad + aux.grad {theirs}"), &sum, &values);
            Ok::<(), anyhow::Error>(())
        })?;
    }
    Ok(kept.iter().filter(|kept| **kept == 1).count() == want.len())
}
