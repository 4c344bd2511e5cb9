//! One step of training on any device: the loop does not know whether it runs on a CPU or a GPU.

mod cpu;
mod cuda;
mod stepper;

pub(super) use cpu::OnCpu;
pub(super) use cuda::OnCuda;
pub(super) use stepper::{Learner, Stepper};
