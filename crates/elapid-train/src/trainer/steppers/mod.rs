//! One step of training, wherever it runs: the loop does not know whether a CPU or a GPU takes it.

mod cpu;
mod cuda;
mod stepper;

pub(super) use cpu::OnCpu;
pub(super) use cuda::OnCuda;
pub(super) use stepper::{Learner, Stepper};
