//! Tests of the library through its public interface.

mod ablations;
mod autograd;
mod contract;
mod cuda;
mod cuda_attention;
mod cuda_fused;
mod cuda_stacks;
mod decoder;
mod dropout;
mod layers;
mod placement;
mod sizes;
mod speculation;
mod states;
mod trace;
mod weights;

use elapid::LanguageModel;
use elapid::config::ModelConfig;
use elapid::layers::mamba1::{Rule, Settings};
use elapid::settings::{Auto, Count, Size};
use elapid_kernels::selective_scan::Discretisation;

/// Largest error ratio between two orders of summation in f32.
const TOLERANCE: f64 = 1e-5;

/// A small model with odd sizes whose parameters are large enough that every path matters.
fn small_model(rule: Discretisation) -> LanguageModel {
    let mut config = ModelConfig { vocab_size: 37, ..ModelConfig::mamba1("20x3").unwrap() };
    let mamba: &mut Settings = config.stack.settings_mut("mamba1").unwrap();
    (mamba.d_state, mamba.d_conv, mamba.dt_rank) = (Size::new(5), Size::new(3), Auto::Is(Count::new(3)));
    (mamba.discretisation, mamba.proj_bias) = (Rule(rule), true);
    config.stack.model.initializer_range = 0.5;
    LanguageModel::new(config, 7).unwrap()
}

/// Ids below `v` that do not repeat with a short period.
fn ids(count: usize, v: u32) -> Vec<u32> {
    (0..count as u64).map(|i| ((i * i * 31 + i * 7 + 3) % 1009) as u32 % v).collect()
}

fn close(name: &str, want: &[f32], got: &[f32]) {
    let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
    let ratio = elapid_kernels::testing::err_ratio(&want, got);
    assert!(ratio <= TOLERANCE, "{name}: error ratio {ratio:e}");
}
