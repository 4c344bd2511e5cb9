//! CUDA graphs: work that is captured once and replayed many times.

use std::sync::Arc;

use cudarc::driver::{result as driver, sys};

use super::memory::{Kept, Pool};
use super::{Error, Gpu, MemoryUse, Result};

/// A sequence of launches, copies and fills, launched as one.
///
/// It works on the memory that it was captured with and keeps all of it: what it allocated then for itself, and what was
/// there before, even if that is dropped.
#[derive(Debug)]
pub struct Graph {
    exec: sys::CUgraphExec,
    gpu: Gpu,
    pool: Arc<Pool>,
    /// What its launches read and write that is not of its own pool.
    _kept: Vec<Kept>,
    launches: u64,
}

// SAFETY: a handle.
unsafe impl Send for Graph {}

impl Gpu {
    /// Records the work that `f` submits, instead of running it. `f` must have been run before, so that kernels are
    /// loaded; it must not wait, nor read or write the host's memory. Buffers that `f` returns belong to the graph's
    /// memory: every launch writes them anew. The graph keeps the buffers that `f` uses. Other threads that want something of the device wait meanwhile.
    ///
    /// # Errors
    /// The error of `f`, or of the driver if something in `f` cannot be captured.
    pub fn capture<R, E: From<Error>>(self, f: impl FnOnce() -> Result<R, E>) -> Result<(Graph, R), E> {
        let _capture = Capture::begin(self);
        // Memory cached for earlier work is returned first, as the graph has its own. No other thread allocates between the
        // wait for that work and the return.
        self.trim()?;
        let pool = Pool::new(self);
        let before = self.swap_pool(pool.clone());
        let launches = self.launches();
        let recorded = self.record(f);
        self.swap_pool(before);
        let kept = self.take_kept();
        let (exec, value) = recorded?;
        Ok((Graph { exec, gpu: self, pool, _kept: kept, launches: self.launches() - launches }, value))
    }

    fn record<R, E: From<Error>>(self, f: impl FnOnce() -> Result<R, E>) -> Result<(sys::CUgraphExec, R), E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the process.
        unsafe { driver::stream::begin_capture(self.stream(), mode) }.map_err(Error::driver("cuStreamBeginCapture"))?;
        let value = f();
        // SAFETY: as above; the capture ends whatever `f` returned.
        let graph = unsafe { driver::stream::end_capture(self.stream()) };
        let value = value?;
        let graph = graph.map_err(Error::driver("cuStreamEndCapture"))?;
        // SAFETY: the graph was just captured and is destroyed once.
        let exec = unsafe {
            let exec = driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = driver::graph::destroy(graph);
            exec
        }
        .map_err(Error::driver("cuGraphInstantiate"))?;
        Ok((exec, value))
    }
}

/// While this value lives, the device belongs to this thread.
struct Capture(Gpu);

impl Capture {
    fn begin(gpu: Gpu) -> Self {
        gpu.begin_capture();
        Self(gpu)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.0.end_capture();
    }
}

impl Graph {
    /// Replays the work.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        let _bound = self.gpu.bind()?;
        // SAFETY: both handles are alive.
        unsafe { driver::graph::launch(self.exec, self.gpu.stream()) }.map_err(Error::driver("cuGraphLaunch"))
    }

    /// Number of kernels and products in it.
    pub fn launches(&self) -> u64 {
        self.launches
    }

    /// Memory that it keeps.
    pub fn memory(&self) -> MemoryUse {
        self.pool.memory()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: it is destroyed once, and the device has finished with it.
            let _ = unsafe { driver::graph::exec_destroy(self.exec) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::cuda::{Buffer, elementwise};
    use crate::testing::{Random, gpu};

    /// Sums on several threads, while another captures and launches graphs.
    #[test]
    fn what_other_threads_ask_for_stays_out_of_a_graph() {
        const NUMBERS: usize = 5000;
        let Some(gpu) = gpu() else { return };
        let sum = |from: f32| -> Result<Vec<f32>> {
            let (one, all) = (gpu.upload(&vec![from; NUMBERS])?, gpu.upload(&vec![1.0f32; NUMBERS])?);
            elementwise::add(&gpu, one.mat(1, NUMBERS, DType::F32), all.mat_mut(1, NUMBERS, DType::F32))?;
            // Its memory may be reused from here on.
            drop(one);
            gpu.download(&all, 0, NUMBERS)
        };
        sum(0.0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..6 {
                scope.spawn(move || {
                    for i in 0..300 {
                        let from = (1000 * thread + i) as f32;
                        assert!(sum(from).unwrap().iter().all(|&x| x == from + 1.0), "thread {thread}, sum {i}");
                    }
                });
            }
            scope.spawn(move || {
                let two = gpu.upload(&vec![2.0f32; NUMBERS]).unwrap();
                for _ in 0..30 {
                    let all = gpu.upload(&vec![0.0f32; NUMBERS]).unwrap();
                    let (graph, _) = gpu
                        .capture(|| {
                            let own = gpu.alloc(4 * NUMBERS)?;
                            gpu.copy(two.mat(1, NUMBERS, DType::F32), own.mat_mut(1, NUMBERS, DType::F32))?;
                            elementwise::add(&gpu, own.mat(1, NUMBERS, DType::F32), all.mat_mut(1, NUMBERS, DType::F32))
                        })
                        .unwrap();
                    (0..3).for_each(|_| graph.launch().unwrap());
                    assert!(gpu.download::<f32>(&all, 0, NUMBERS).unwrap().iter().all(|&x| x == 6.0));
                }
            });
        });
    }

    /// A buffer that is dropped after a capture is not given to others while the graph works on it.
    #[test]
    fn a_graph_keeps_what_it_was_captured_with() {
        const NUMBERS: usize = 5000;
        let Some(gpu) = gpu() else { return };
        let one = gpu.upload(&vec![1.0f32; NUMBERS]).unwrap();
        let sum = gpu.upload(&vec![0.0f32; NUMBERS]).unwrap();
        let add = || elementwise::add(&gpu, one.mat(1, NUMBERS, DType::F32), sum.mat_mut(1, NUMBERS, DType::F32));
        add().unwrap();
        let (graph, ()) = gpu.capture(add).unwrap();
        let address = one.address();
        drop(one);
        let others: Vec<Buffer> = (0..50).map(|_| gpu.upload(&vec![7.0f32; NUMBERS]).unwrap()).collect();
        assert!(others.iter().all(|other| other.address() != address));
        (0..3).for_each(|_| graph.launch().unwrap());
        assert!(gpu.download::<f32>(&sum, 0, NUMBERS).unwrap().iter().all(|&x| x == 4.0));
    }

    /// Products that are cut along their sum and put together in a second launch, while another thread launches graphs of
    /// such products: neither works in the other's memory.
    #[test]
    fn products_keep_apart_from_those_in_graphs() {
        let (m, n, k) = (128, 160, 4096);
        let Some(gpu) = gpu() else { return };
        let numbers = |count, seed| gpu.upload(&Random::new(seed).uniform(count, -1.0, 1.0)).unwrap();
        let product = |x: &Buffer, w: &Buffer| -> Result<Buffer> {
            let y = gpu.alloc(m * n * 4)?;
            let (x, w) = (x.mat(m, k, DType::F32), w.mat(n, k, DType::F32));
            crate::linear::cuda::forward(x, w, None, y.mat_mut(m, n, DType::F32))?;
            Ok(y)
        };
        let read = |y: &Buffer| gpu.download::<f32>(y, 0, m * n).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || {
                    let (x, w) = (numbers(m * k, thread), numbers(n * k, 7));
                    let want = read(&product(&x, &w).unwrap());
                    for _ in 0..500 {
                        assert_eq!(read(&product(&x, &w).unwrap()), want);
                    }
                });
            }
            scope.spawn(move || {
                let (x, w) = (numbers(m * k, 8), numbers(n * k, 9));
                let want = read(&product(&x, &w).unwrap());
                let (graph, y) = gpu.capture(|| product(&x, &w)).unwrap();
                for _ in 0..2000 {
                    graph.launch().unwrap();
                }
                assert_eq!(read(&y), want);
            });
        });
    }
}
