//! Uses in the order of their experts.

use super::args::{CHECK, HostOrder, NOWHERE};
use super::cuda;
use crate::Array;
use crate::cuda::{Gpu, Result};
use crate::error;

/// Uses in the order of their experts, those of an expert in their own order.
#[derive(Debug)]
pub struct Order {
    positions: usize,
    top_k: usize,
    experts: usize,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Host(HostOrder),
    Device(cuda::Order),
}

/// Sorts uses by expert. An expert takes its first `room` uses (those of earlier positions before those of later ones), and none
/// that is not below `experts`: the others get no place.
///
/// `picked` `[m k]`.
///
/// # Errors
/// If there are too many uses or experts, or a device failed.
pub fn sort(picked: Array<'_, u32>, top_k: usize, experts: usize, room: usize) -> Result<Order> {
    let n = picked.len();
    CHECK.that(top_k > 0 && n.is_multiple_of(top_k), "picked", || format!("{top_k} for each"), || n.to_string())?;
    CHECK.that(n < 1 << 31, "picked", || "fewer than 2^31".into(), || n.to_string())?;
    let few = (1..=crate::router::MOST).contains(&experts);
    CHECK.that(few, "experts", || format!("1 to {}", crate::router::MOST), || experts.to_string())?;
    let kept = match picked {
        Array::Host(picked) => Kept::Host(on_host(picked, top_k, experts, room)),
        Array::Device(picked) => Kept::Device(cuda::sort(picked, top_k, experts, room)?),
    };
    Ok(Order { positions: n / top_k, top_k, experts, kept })
}

/// One use of each position, in the order of positions.
///
/// # Errors
/// As [`sort`].
pub fn identity(gpu: Option<Gpu>, m: usize) -> Result<Order> {
    match gpu {
        None => sort(Array::Host(&vec![0; m]), 1, 1, m),
        Some(gpu) => {
            let picked = gpu.alloc(4 * m)?;
            gpu.zero(picked.mat_mut(1, m, crate::DType::F32))?;
            sort(Array::Device(&picked), 1, 1, m)
        }
    }
}

fn on_host(picked: &[u32], k: usize, experts: usize, room: usize) -> HostOrder {
    let mut counts = vec![0_usize; experts];
    picked.iter().filter(|&&e| (e as usize) < experts).for_each(|&e| counts[e as usize] += 1);
    let mut starts = vec![0_u32];
    for count in counts {
        starts.push(starts[starts.len() - 1] + count.min(room) as u32);
    }
    let mut next: Vec<u32> = starts[..experts].to_vec();
    let (mut uses, mut places) = (vec![NOWHERE; picked.len()], vec![NOWHERE; picked.len()]);
    for (at, &e) in picked.iter().enumerate().filter(|(_, e)| (**e as usize) < experts) {
        let e = e as usize;
        if next[e] < starts[e + 1] {
            (uses[next[e] as usize], places[at]) = (at as u32, next[e]);
            next[e] += 1;
        }
    }
    HostOrder { starts, uses, places, k }
}

impl Order {
    /// Positions m.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Experts of a position, k.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Experts e.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Uses n = m k.
    pub fn uses(&self) -> usize {
        self.positions * self.top_k
    }

    pub(super) fn host(&self) -> error::Result<&HostOrder> {
        match &self.kept {
            Kept::Host(order) => Ok(order),
            Kept::Device(_) => Err(CHECK.fault("order", "one of the CPU".into(), "one of a GPU".into())),
        }
    }

    pub(super) fn device(&self, gpu: Gpu) -> error::Result<&cuda::Order> {
        match &self.kept {
            Kept::Device(order) if order.gpu() == gpu => Ok(order),
            _ => Err(CHECK.fault("order", format!("one of {gpu:?}"), "one of another device".into())),
        }
    }
}
