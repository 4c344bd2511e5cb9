//! Trains a tiny model on sequences from a closure: counting modulo a number, from a varying start.
//! `cargo run --release -p elapid --example train_tiny`.

use std::sync::Arc;

use elapid::Layout;
use elapid::autograd::Tape;
use elapid::config::ModelConfig;
use elapid::generate::{Generator, Sampling};
use elapid::params::ParamGrads;
use elapid::{LanguageModel, Result};
use elapid_kernels::adamw;

const CIRCLE: u32 = 12;

fn main() -> Result<()> {
    let config = ModelConfig { vocab_size: CIRCLE as usize, ..ModelConfig::mamba1("32x2")? };
    let mut model = LanguageModel::new(config, 0)?;
    let (b, l) = (8, 24);
    let data = |step: u32| -> Vec<u32> {
        let row = |i: u32| (0..=l as u32).map(move |t| ((step * 5 + i * 7) + t * (1 + i % 3)) % CIRCLE);
        (0..b as u32).flat_map(row).collect()
    };

    let mut m: Vec<Vec<f32>> = model.params().iter().map(|(_, param)| vec![0.0; param.value.len()]).collect();
    let mut v = m.clone();
    let mut grads = ParamGrads::default();
    for step in 1..=150 {
        let rows = data(step);
        let inputs: Vec<u32> = rows.chunks(l + 1).flat_map(|row| &row[..l]).copied().collect();
        let targets: Vec<i32> = rows.chunks(l + 1).flat_map(|row| &row[1..]).map(|&id| id as i32).collect();

        let tape = Arc::new(Tape::new());
        let cx = model.training(&tape, Layout::new(b, l));
        let (loss, _) = model.loss(&cx, &inputs, &targets, &model.zero_state(b)?, false)?;
        grads.zero()?;
        tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(()))?;
        drop(cx);

        let (beta1, beta2, weight_decay) = (0.9, 0.95, 0.0);
        let hyper =
            adamw::Hyper { lr: 5e-3, beta1, beta2, eps: 1e-8, weight_decay, step: step.into(), grad_scale: 1.0 };
        for (((id, param), m), v) in model.params_mut().iter_mut().zip(&mut m).zip(&mut v) {
            if let Some(g) = grads.get(id) {
                adamw::step(&hyper, param.value.make_mut(), g.as_slice(), m, v)?;
            }
        }
        if step % 25 == 0 {
            println!("step {step}: loss {:.3}", loss.value()?);
        }
    }

    let mut sequence = Generator::new(&model, Sampling { temperature: 0.0, ..Sampling::default() }, 0)?;
    sequence.read(&[3, 5, 7, 9])?;
    let next: Vec<u32> = (0..8).map(|_| sequence.next_token()).collect::<Result<_>>()?;
    println!("3 5 7 9 goes on {next:?}");
    Ok(())
}
