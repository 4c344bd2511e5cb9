//! Comparison with recorded outputs of a reference implementation.

mod mixer;
mod record;
mod states;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use elapid::Layout;
use elapid::autograd::Tape;
use elapid::checkpoint::Checkpoint;
use elapid::generate::{Generator, Sampling};
use elapid::layers::moe;
use elapid::lm::Positions;
use elapid::params::ParamGrads;
use elapid::{DType, Device, LanguageModel};
use elapid_train::optim::{AdamW, Options};
use safetensors::SafeTensors;

use self::record::{Golden, Report};

/// Error ratios of the losses and gradient norms of training, which differences grow through.
const TRAINING: f64 = 1e-4;

/// Checks every folder of a whole model and every file of a single layer; fails if anything in any is off.
pub(crate) fn run(paths: &[PathBuf], tolerance: f64, device: Device, dtype: DType) -> Result<()> {
    let mut missed = Vec::new();
    for folder in paths {
        let single = folder.is_file();
        let there = single || folder.join("golden.safetensors").is_file();
        ensure!(there, "{}: no golden.safetensors there, and no file of a layer", folder.display());
        println!("{}", folder.display());
        let mut report = Report { tolerance, noise: BTreeMap::new(), missed: Vec::new(), checked: 0 };
        let checked = match dtype {
            _ if single => mixer::check(folder, &mut report),
            DType::F32 => check(folder, device, &mut report),
            DType::Bf16 => check_bf16(folder, device, &mut report),
        };
        checked.with_context(|| format!("{}", folder.display()))?;
        println!("  {} checked, {} missed", report.checked, report.missed.len());
        missed.extend(report.missed.iter().map(|name| format!("{}: {name}", folder.display())));
    }
    ensure!(missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
    Ok(())
}

/// The tokens of a folder, and what each predicts.
struct Batch {
    layout: Layout,
    tokens: Vec<u32>,
    targets: Vec<i32>,
}

fn batch(golden: &Golden<'_>) -> Result<Batch> {
    let shape = golden.shape("tokens")?;
    ensure!(shape.len() == 2, "tokens: wanted two dimensions, got {shape:?}");
    let (b, l) = (shape[0], shape[1]);
    let tokens = golden.ids("tokens")?;
    let targets = (0..b * l).map(|i| if i % l + 1 < l { tokens[i + 1] as i32 } else { -1 }).collect();
    Ok(Batch { layout: Layout::new(b, l), tokens, targets })
}

/// Activations in bf16: logits within 2e-2 of the f32 ones, losses within 1 %.
fn check_bf16(folder: &Path, device: Device, report: &mut Report) -> Result<()> {
    let bytes = std::fs::read(folder.join("golden.safetensors"))?;
    let golden = Golden(SafeTensors::deserialize(&bytes).context("golden.safetensors")?);
    let mut model = LanguageModel::load(&Checkpoint::open(folder)?)?.to_train(device, DType::Bf16)?;
    let Batch { layout, tokens, targets } = batch(&golden)?;
    let cx = model.inference(layout.clone());
    let (logits, _) = model.logits(&cx, &tokens, &model.zero_state(layout.b)?, Positions::All)?;
    report.ratio("logits", &golden.floats("logits")?, &logits.value().to_vec()?, 2e-2);
    let (_, loss) = gradients(&model, &layout, &tokens, &targets)?;
    report.ratio("loss", &golden.floats("loss")?, &[loss.value()?], 1e-2);
    report.ratio("train.loss", &golden.floats("train.loss")?, &train(&mut model, &golden, &layout)?.0, 1e-2);
    Ok(())
}

/// Losses and gradient norms of as many AdamW steps as were recorded.
fn train(model: &mut LanguageModel, golden: &Golden<'_>, layout: &Layout) -> Result<(Vec<f32>, Vec<f32>)> {
    let Batch { tokens, targets, .. } = batch(golden)?;
    let options = Options { decay_all: true, ..Options::default() };
    let mut optimiser = AdamW::new(model.params(), options)?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for _ in golden.floats("train.loss")? {
        let (grads, loss) = gradients(model, layout, &tokens, &targets)?;
        losses.push(loss.value()?);
        drop(loss);
        norms.push(optimiser.step(model.params_mut(), &grads, 1e-3)? as f32);
    }
    Ok((losses, norms))
}

fn check(folder: &Path, device: Device, report: &mut Report) -> Result<()> {
    let bytes = std::fs::read(folder.join("golden.safetensors"))?;
    let golden = Golden(SafeTensors::deserialize(&bytes).context("golden.safetensors")?);
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    if let Some(noise) = header.metadata().as_ref().and_then(|notes| notes.get("noise")) {
        report.noise = serde_json::from_str(noise).context("`noise` in the metadata")?;
    }
    let checkpoint = Checkpoint::open(folder)?;
    let mut model = LanguageModel::load(&checkpoint)?.to_train(device, DType::F32)?;
    let Batch { layout, tokens, targets } = batch(&golden)?;
    let (b, l) = (layout.b, layout.l);

    let cx = model.inference(layout.clone());
    let (logits, state) = model.logits(&cx, &tokens, &model.zero_state(b)?, Positions::All)?;
    report.close("logits", &golden.floats("logits")?, &logits.value().to_vec()?);
    states::check(&golden, &model, &state, report)?;

    let (grads, loss) = gradients(&model, &layout, &tokens, &targets)?;
    report.close("loss", &golden.floats("loss")?, &[loss.value()?]);
    let nll: Vec<f32> = loss.nll.to_vec()?.chunks(l).flat_map(|row| &row[..l - 1]).copied().collect();
    report.close("nll", &golden.floats("nll")?, &nll);
    let mut left: BTreeSet<String> = golden.names_after("grad.");
    for (id, param) in model.params().iter().filter(|(_, param)| param.traits.trainable) {
        let got = grads.get(id).with_context(|| format!("no gradient for {}", param.name))?.to_vec()?;
        checkpoint.places.of(&param.name).write(param.value.shape(), &got, &mut |theirs, _, got| {
            let name = format!("grad.{theirs}");
            report.close(&name, &golden.floats(&name)?, &got);
            left.remove(theirs);
            Ok::<(), anyhow::Error>(())
        })?;
    }
    ensure!(left.is_empty(), "gradients of parameters that elapid does not have: {left:?}");
    if golden.shape("aux.loss").is_ok() {
        balance(folder, &golden, device, report)?;
    }

    let want = golden.ids("greedy.tokens")?;
    let got = greedy(&model, &golden.ids("greedy.prompt")?, want.len())?;
    let same = want.iter().zip(&got).take_while(|(want, got)| want == got).count();
    report.line("greedy.tokens", same == want.len(), format!("{same} of {} equal", want.len()));

    let (want_losses, want_norms) = (golden.floats("train.loss")?, golden.floats("train.grad_norm")?);
    let (losses, norms) = train(&mut model, &golden, &layout)?;
    report.ratio("train.loss", &want_losses, &losses, TRAINING);
    report.ratio("train.grad_norm", &want_norms, &norms, TRAINING);
    Ok(())
}

/// The load balance of a model's routers, and its gradients.
fn balance(folder: &Path, golden: &Golden<'_>, device: Device, report: &mut Report) -> Result<()> {
    let mut checkpoint = Checkpoint::open(folder)?;
    for named in checkpoint.config.stack.named.values_mut() {
        if let Some(settings) = named.layer.settings_mut::<moe::Settings>() {
            settings.balance = 1.0;
        }
    }
    let model = LanguageModel::load(&checkpoint)?.to_train(device, DType::F32)?;
    let Batch { layout, tokens, targets } = batch(golden)?;
    let tape = Arc::new(Tape::new());
    let cx = model.training(&tape, layout.clone());
    model.loss(&cx, &tokens, &targets, &model.zero_state(layout.b)?, true)?;
    let sides = cx.take_side_losses()?;
    let [(loss, weight)] = sides.as_slice() else { bail!("{} losses of routers", sides.len()) };
    report.close("aux.loss", &golden.floats("aux.loss")?, &loss.value().to_vec()?);
    let mut grads = ParamGrads::of(model.params())?;
    tape.backward(&[(loss, *weight)], &mut grads, &mut |_| Ok(()))?;
    let mut left: BTreeSet<String> = golden.names_after("aux.grad.");
    for (id, param) in model.params().iter() {
        let Some(got) = grads.get(id).map(elapid::Tensor::to_vec).transpose()? else { continue };
        checkpoint.places.of(&param.name).write(param.value.shape(), &got, &mut |theirs, _, got| {
            if left.remove(theirs) {
                let name = format!("aux.grad.{theirs}");
                report.close(&name, &golden.floats(&name)?, &got);
            }
            Ok::<(), anyhow::Error>(())
        })?;
    }
    ensure!(left.is_empty(), "gradients of routers that elapid does not have: {left:?}");
    Ok(())
}

/// The likeliest tokens after a prompt. The sequence's clone of the model ends here: training would copy what two share.
fn greedy(model: &LanguageModel, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    let mut sequence = Generator::new(model, Sampling { temperature: 0.0, ..Sampling::default() }, 0)?;
    sequence.read(prompt)?;
    Ok((0..count).map(|_| sequence.next_token()).collect::<elapid::Result<_>>()?)
}

fn gradients(
    model: &LanguageModel,
    layout: &Layout,
    tokens: &[u32],
    targets: &[i32],
) -> Result<(ParamGrads, elapid::ops::Loss)> {
    let tape = Arc::new(Tape::new());
    let cx = model.training(&tape, layout.clone());
    let (loss, _) = model.loss(&cx, tokens, targets, &model.zero_state(layout.b)?, false)?;
    let mut grads = ParamGrads::of(model.params())?;
    tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(()))?;
    Ok((grads, loss))
}
