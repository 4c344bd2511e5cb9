//! Sums over several GPUs by NCCL, one process per GPU.
//!
//! A [`Communicator`] has its own stream, so sums run while the device computes. [`Mark`]s order the two streams: work
//! submitted to the device before a mark is done before work submitted to the communicator [`after`](Communicator::after)
//! it, and [`join`](Communicator::join) makes the device wait for the communicator. A mark may be inside a captured graph;
//! every launch passes it again. Sums themselves are never captured, so one graph serves batches with and without them, and
//! a communicator can be ended while graphs live.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cudarc::driver::{result as driver, sys};
use libloading::Library;

use super::library::{self, Needed};
use super::{Buffer, Error, Gpu, Result};

/// How long [`Communicator::abort`] waits for a call in another thread.
const PATIENCE: Duration = Duration::from_secs(5);

// nccl.h.
type Status = c_int;
type Handle = *mut c_void;
const SUCCESS: Status = 0;
const IN_PROGRESS: Status = 7;
const UINT8: c_int = 1;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// The id of a communicator, made by one rank and passed to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Id(pub [u8; 128]);

/// Functions of the library, which stays loaded.
struct Nccl {
    get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    get_unique_id: unsafe extern "C" fn(*mut Id) -> Status,
    comm_init_rank: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> Status,
    comm_abort: unsafe extern "C" fn(Handle) -> Status,
    comm_get_async_error: unsafe extern "C" fn(Handle, *mut Status) -> Status,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
    /// In 2.13 and newer: more about the last error.
    get_last_error: Option<unsafe extern "C" fn(Handle) -> *const c_char>,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, sys::CUstream) -> Status,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, sys::CUstream) -> Status,
}

impl Nccl {
    fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<Nccl> = OnceLock::new();
        if let Some(nccl) = LOADED.get() {
            return Ok(nccl);
        }
        let library: &'static Library = Box::leak(Box::new(library::open(Needed::Nccl)?));
        let missing = |error: libloading::Error| Error::Call { call: "dlsym", reason: error.to_string() };
        // SAFETY: the signatures are those of nccl.h, the same since 2.4.
        let nccl = unsafe {
            Self {
                get_version: *library.get(b"ncclGetVersion\0").map_err(missing)?,
                get_unique_id: *library.get(b"ncclGetUniqueId\0").map_err(missing)?,
                comm_init_rank: *library.get(b"ncclCommInitRank\0").map_err(missing)?,
                comm_abort: *library.get(b"ncclCommAbort\0").map_err(missing)?,
                comm_get_async_error: *library.get(b"ncclCommGetAsyncError\0").map_err(missing)?,
                get_error_string: *library.get(b"ncclGetErrorString\0").map_err(missing)?,
                get_last_error: library.get(b"ncclGetLastError\0").ok().map(|function| *function),
                all_reduce: *library.get(b"ncclAllReduce\0").map_err(missing)?,
                broadcast: *library.get(b"ncclBroadcast\0").map_err(missing)?,
            }
        };
        Ok(LOADED.get_or_init(|| nccl))
    }

    fn check(&self, call: &'static str, status: Status, comm: Handle) -> Result<()> {
        match status {
            SUCCESS => Ok(()),
            status => Err(Error::Call { call, reason: self.explain(status, comm) }),
        }
    }

    fn explain(&self, status: Status, comm: Handle) -> String {
        let text = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: NCCL's texts end with 0 and live until the next call; they are copied at once.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        };
        // SAFETY: it takes any number.
        let what = text(unsafe { (self.get_error_string)(status) });
        // SAFETY: it takes a live communicator or null.
        let more = self.get_last_error.map_or_else(String::new, |last| text(unsafe { last(comm) }));
        match more.as_str() {
            "" => format!("{what} (NCCL_DEBUG=WARN says more)"),
            more => format!("{what}: {more}"),
        }
    }
}

/// NCCL's version: 22703 is 2.27.3.
///
/// # Errors
/// If it is missing.
pub fn version() -> Result<i32> {
    let nccl = Nccl::get()?;
    let mut version = 0;
    // SAFETY: it writes one number.
    nccl.check("ncclGetVersion", unsafe { (nccl.get_version)(&mut version) }, std::ptr::null_mut())?;
    Ok(version)
}

/// A new id; every rank of a communicator needs the same.
///
/// # Errors
/// If NCCL is missing, or finds no network interface.
pub fn unique_id() -> Result<Id> {
    let nccl = Nccl::get()?;
    let mut id = Id([0; 128]);
    // SAFETY: it writes one id.
    nccl.check("ncclGetUniqueId", unsafe { (nccl.get_unique_id)(&mut id) }, std::ptr::null_mut())?;
    Ok(id)
}

/// The PCI bus id of a GPU on its host: `0000:17:00.0`.
///
/// # Errors
/// If the driver refuses.
pub fn bus_id(gpu: Gpu) -> Result<String> {
    let number = i32::try_from(gpu.ordinal()).unwrap_or(i32::MAX);
    let device = driver::device::get(number).map_err(Error::driver("cuDeviceGet"))?;
    let mut text = [0 as c_char; 32];
    // SAFETY: it writes at most 32 characters, the last of them 0.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 32, device) }
        .result()
        .map_err(Error::driver("cuDeviceGetPCIBusId"))?;
    // SAFETY: as above.
    Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// One rank of several GPUs that sum their values. Every rank must submit the same operations in the same order.
pub struct Communicator {
    nccl: &'static Nccl,
    /// Null once it was ended.
    comm: Mutex<Comm>,
    side: Side,
    /// What it works on, until the device waits for it: the device's stream, which orders what is done with freed memory,
    /// does not order this one.
    held: Mutex<Vec<Arc<Buffer>>>,
}

struct Comm(Handle);

// SAFETY: NCCL lets any thread use a communicator, one at a time: it is behind a lock.
unsafe impl Send for Comm {}

/// A stream besides the device's own.
struct Side {
    gpu: Gpu,
    stream: sys::CUstream,
    /// The end of the work submitted to it so far.
    done: Mark,
}

// SAFETY: a handle.
unsafe impl Send for Side {}
// SAFETY: a handle.
unsafe impl Sync for Side {}

impl Side {
    fn new(gpu: Gpu) -> Result<Self> {
        let _bound = gpu.bind()?;
        // Its work is short and others wait for it, so it has priority over computation.
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: it writes two numbers.
        unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) }
            .result()
            .map_err(Error::driver("cuCtxGetStreamPriorityRange"))?;
        let kind = driver::stream::StreamKind::NonBlocking;
        let stream = driver::stream::create_with_priority(kind, greatest)
            .map_err(Error::driver("cuStreamCreateWithPriority"))?;
        Ok(Self { gpu, stream, done: Mark::new(gpu)? })
    }

    fn after(&self, mark: &Mark) -> Result<()> {
        let _bound = self.gpu.bind()?;
        wait(self.stream, mark)
    }

    fn join(&self) -> Result<()> {
        let _bound = self.gpu.bind()?;
        // SAFETY: both handles are alive.
        unsafe { driver::event::record(self.done.0.event, self.stream) }.map_err(Error::driver("cuEventRecord"))?;
        wait(self.gpu.stream(), &self.done)
    }

    /// To be called once, with nothing left to do.
    fn end(&self) {
        if let Ok(_bound) = self.gpu.bind() {
            // SAFETY: it is destroyed once; work still on it is done before.
            let _ = unsafe { driver::stream::destroy(self.stream) };
        }
    }
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "communicator of {:?}", self.side.gpu)
    }
}

impl Communicator {
    /// Rank `rank` of `world`; waits until all ranks have joined.
    ///
    /// # Errors
    /// If NCCL is missing, two ranks use the same GPU, or ranks cannot reach each other.
    pub fn new(gpu: Gpu, rank: usize, world: usize, id: &Id) -> Result<Self> {
        let nccl = Nccl::get()?;
        let side = Side::new(gpu)?;
        let number = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
        let mut comm = std::ptr::null_mut();
        // SAFETY: it writes one handle; the context of the rank's GPU is current.
        let status = unsafe { (nccl.comm_init_rank)(&mut comm, number(world), *id, number(rank)) };
        nccl.check("ncclCommInitRank", status, std::ptr::null_mut())?;
        Ok(Self { nccl, comm: Mutex::new(Comm(comm)), side, held: Mutex::default() })
    }

    /// Makes later sums wait for the device's work before `mark`; does nothing if the mark was never passed.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn after(&self, mark: &Mark) -> Result<()> {
        self.side.after(mark)
    }

    /// buffer[from .. from + count] ← its sum over all ranks, f32. The buffer is kept until [`join`](Self::join).
    ///
    /// # Errors
    /// If NCCL fails, or the communicator was ended.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer, or that is on another device.
    pub fn all_reduce(&self, buffer: &Arc<Buffer>, from: usize, count: usize) -> Result<()> {
        let at = buffer.range::<f32>(self.side.gpu, from, count) as *mut c_void;
        self.call("ncclAllReduce", buffer, |comm| {
            // SAFETY: the range lies inside the buffer, in place, and `held` keeps that until the sum is done.
            unsafe { (self.nccl.all_reduce)(at, at, count, FLOAT32, SUM, comm, self.side.stream) }
        })
    }

    /// All bytes of `buffer` ← those of rank `root`. The buffer is kept until [`join`](Self::join).
    ///
    /// # Errors
    /// If NCCL fails, or the communicator was ended.
    ///
    /// # Panics
    /// If the buffer is on another device.
    pub fn broadcast(&self, buffer: &Arc<Buffer>, root: usize) -> Result<()> {
        let at = buffer.range::<u8>(self.side.gpu, 0, buffer.bytes()) as *mut c_void;
        let root = c_int::try_from(root).unwrap_or(c_int::MAX);
        self.call("ncclBroadcast", buffer, |comm| {
            // SAFETY: the range is the whole buffer, in place, and `held` keeps that until the copy is done.
            unsafe { (self.nccl.broadcast)(at, at, buffer.bytes(), UINT8, root, comm, self.side.stream) }
        })
    }

    fn call(&self, name: &'static str, on: &Arc<Buffer>, call: impl FnOnce(Handle) -> Status) -> Result<()> {
        let gpu = self.side.gpu;
        if gpu.is_capturing() {
            let reason = "sums over GPUs are not captured into graphs".to_owned();
            return Err(Error::Call { call: name, reason });
        }
        let _bound = gpu.bind()?;
        let comm = lock(&self.comm);
        if comm.0.is_null() {
            return Err(Error::Call { call: name, reason: "the communicator was ended".to_owned() });
        }
        let status = call(comm.0);
        // After the call: a join in another thread must not take for done what is not submitted yet.
        lock(&self.held).push(on.clone());
        self.nccl.check(name, status, comm.0)
    }

    /// What is submitted to the device next waits for the communicator.
    ///
    /// # Errors
    /// If the driver refuses, or a graph is being captured.
    pub fn join(&self) -> Result<()> {
        // Captured, the wait would come with the graph's launches, and nobody could tell when buffers may go.
        self.side.gpu.refuse_in_capture("cuStreamWaitEvent")?;
        // Those of calls that come meanwhile wait for the next join.
        let held = std::mem::take(&mut *lock(&self.held));
        self.side.join().inspect_err(|_| lock(&self.held).extend(held.iter().cloned()))
    }

    /// The error since then, if there was one, such as a failed network or a lost rank. Does not wait.
    pub fn failure(&self) -> Option<String> {
        let comm = match self.comm.try_lock() {
            Ok(comm) => comm,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if comm.0.is_null() {
            return None;
        }
        let mut found = SUCCESS;
        // SAFETY: the communicator is alive as long as the lock is held; it writes one number.
        let status = unsafe { (self.nccl.comm_get_async_error)(comm.0, &mut found) };
        let broken = [status, found].into_iter().find(|&status| status != SUCCESS && status != IN_PROGRESS)?;
        Some(self.nccl.explain(broken, comm.0))
    }

    /// Aborts it at once, from any thread: sums in progress stop anywhere, with undefined results. Returns false if a call
    /// in another thread does not return, so that it could not be aborted.
    pub fn abort(&self) -> bool {
        let since = Instant::now();
        let mut comm = loop {
            match self.comm.try_lock() {
                Ok(comm) => break comm,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if since.elapsed() > PATIENCE => return false,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let comm = std::mem::replace(&mut comm.0, std::ptr::null_mut());
        if !comm.is_null()
            && let Ok(_bound) = self.side.gpu.bind()
        {
            // SAFETY: it was taken out of the lock, so that nobody uses it after.
            unsafe { (self.nccl.comm_abort)(comm) };
        }
        true
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Aborted and not destroyed in NCCL's sense, which waits for other ranks that may be gone. Its results are already
        // there when it is dropped.
        if self.abort() {
            self.side.end();
        } else {
            // A sum may still be under way.
            std::mem::forget(std::mem::take(&mut *lock(&self.held)));
        }
    }
}

/// A point in the device's work that a communicator can wait for. Inside a graph, every launch passes it.
#[derive(Debug)]
pub struct Mark(Arc<MarkEvent>);

/// A graph that was captured while it passed the mark holds it too.
#[derive(Debug)]
struct MarkEvent {
    event: sys::CUevent,
    gpu: Gpu,
}

// SAFETY: a handle.
unsafe impl Send for MarkEvent {}
// SAFETY: a handle.
unsafe impl Sync for MarkEvent {}

impl Mark {
    /// A mark, to be passed.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(gpu: Gpu) -> Result<Self> {
        let _bound = gpu.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = driver::event::create(flags).map_err(Error::driver("cuEventCreate"))?;
        Ok(Self(Arc::new(MarkEvent { event, gpu })))
    }

    /// Marks what was submitted to the device so far. A graph that this is captured into keeps the mark.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn pass(&self) -> Result<()> {
        let MarkEvent { event, gpu } = *self.0;
        let _bound = gpu.bind()?;
        let flags = match gpu.is_capturing() {
            // A node of its own, that others can wait for after each launch; without it only the capture would know.
            true => {
                gpu.keep_for_graph(self.0.clone());
                sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL
            }
            false => sys::CUevent_record_flags_enum::CU_EVENT_RECORD_DEFAULT,
        };
        // SAFETY: both handles are alive.
        unsafe { sys::cuEventRecordWithFlags(event, gpu.stream(), flags as u32) }
            .result()
            .map_err(Error::driver("cuEventRecordWithFlags"))
    }
}

impl Drop for MarkEvent {
    fn drop(&mut self) {
        if let Ok(_bound) = self.gpu.bind() {
            // SAFETY: it is destroyed once; the driver keeps what still waits for it.
            let _ = unsafe { driver::event::destroy(self.event) };
        }
    }
}

fn wait(stream: sys::CUstream, mark: &Mark) -> Result<()> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: both handles are alive.
    unsafe { driver::stream::wait_event(stream, mark.0.event, flags) }.map_err(Error::driver("cuStreamWaitEvent"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::cuda::{count, elementwise};

    /// A GPU with NCCL.
    fn gpu() -> Option<Gpu> {
        let gpu = crate::testing::gpu()?;
        match version() {
            Ok(_) => Some(gpu),
            Err(error) => {
                crate::testing::not_run("NCCL", &error.to_string());
                None
            }
        }
    }

    #[test]
    fn alone_nothing_changes() {
        let Some(gpu) = gpu() else { return };
        let alone = Communicator::new(gpu, 0, 1, &unique_id().unwrap()).unwrap();
        let numbers: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let buffer = Arc::new(gpu.upload(&numbers).unwrap());
        let mark = Mark::new(gpu).unwrap();
        mark.pass().unwrap();
        alone.after(&mark).unwrap();
        alone.all_reduce(&buffer, 10, 500).unwrap();
        alone.broadcast(&buffer, 0).unwrap();
        assert_eq!(Arc::strong_count(&buffer), 3, "kept while its sums may run");
        alone.join().unwrap();
        assert_eq!(Arc::strong_count(&buffer), 1);
        assert_eq!(gpu.download::<f32>(&buffer, 0, 1000).unwrap(), numbers);
        assert_eq!(alone.failure(), None);
        assert!(alone.abort());
        assert!(alone.all_reduce(&buffer, 0, 1).is_err(), "it was ended");
        assert!(!bus_id(gpu).unwrap().is_empty());
    }

    /// The other stream reads after the mark, though the graph goes on; the device goes on after the other stream.
    #[test]
    fn a_mark_inside_a_graph_orders_the_streams() {
        const COUNT: usize = 1 << 22;
        let Some(gpu) = crate::testing::gpu() else { return };
        let side = Side::new(gpu).unwrap();
        let [one, sum, seen, later] = [(); 4].map(|()| gpu.alloc(4 * COUNT).unwrap());
        let fill = |buffer: &Buffer, value| elementwise::fill(&gpu, buffer.mat_mut(1, COUNT, DType::F32), value);
        let add_to = |buffer: &Buffer| {
            let add = || elementwise::add(&gpu, one.mat(1, COUNT, DType::F32), buffer.mat_mut(1, COUNT, DType::F32));
            (0..200).try_for_each(|_| add())
        };
        fill(&one, 1.0).unwrap();
        fill(&later, 0.0).unwrap();
        let mark = Mark::new(gpu).unwrap();
        let work = || -> Result<()> {
            fill(&sum, 0.0)?;
            add_to(&sum)?;
            mark.pass()?;
            add_to(&later)
        };
        work().unwrap();
        let (graph, ()) = gpu.capture(work).unwrap();
        for launch in 0..5 {
            fill(&seen, -1.0).unwrap();
            graph.launch().unwrap();
            side.after(&mark).unwrap();
            // SAFETY: both buffers have that many bytes.
            unsafe { driver::memcpy_dtod_async(seen.address(), sum.address(), 4 * COUNT, side.stream) }.unwrap();
            side.join().unwrap();
            let got = gpu.download::<f32>(&seen, 0, COUNT).unwrap();
            assert!(got.iter().all(|&x| x == 200.0), "launch {launch}: {:?}", got.iter().find(|&&x| x != 200.0));
        }
        side.end();
    }

    #[test]
    fn two_gpus_sum() {
        let Some(first) = gpu() else { return };
        if count().unwrap() < 2 {
            crate::testing::not_run("second GPU", "this machine has one");
            return;
        }
        let id = unique_id().unwrap();
        let rank = |rank: usize, gpu: Gpu| {
            let both = Communicator::new(gpu, rank, 2, &id).unwrap();
            let numbers: Vec<f32> = (0..100_000).map(|i| (i * (rank + 1)) as f32).collect();
            let [sums, copies] = [(); 2].map(|()| Arc::new(gpu.upload(&numbers).unwrap()));
            let mark = Mark::new(gpu).unwrap();
            mark.pass().unwrap();
            both.after(&mark).unwrap();
            both.all_reduce(&sums, 0, numbers.len()).unwrap();
            both.broadcast(&copies, 0).unwrap();
            both.join().unwrap();
            let sums = gpu.download::<f32>(&sums, 0, numbers.len()).unwrap();
            assert!(sums.iter().enumerate().all(|(i, &x)| x == (3 * i) as f32), "rank {rank}");
            let copies = gpu.download::<f32>(&copies, 0, numbers.len()).unwrap();
            assert!(copies.iter().enumerate().all(|(i, &x)| x == i as f32), "rank {rank}");
        };
        std::thread::scope(|scope| {
            scope.spawn(|| rank(0, first));
            scope.spawn(|| rank(1, Gpu::open(1).unwrap()));
        });
    }

    /// The rank that stays behind is freed by an abort from another thread.
    #[test]
    fn an_abort_ends_a_sum_that_waits() {
        let Some(first) = gpu() else { return };
        if count().unwrap() < 2 {
            crate::testing::not_run("second GPU", "this machine has one");
            return;
        }
        let id = unique_id().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = Communicator::new(Gpu::open(1).unwrap(), 1, 2, &id).unwrap();
                let buffer = Arc::new(Gpu::open(1).unwrap().upload(&[1.0f32; 64]).unwrap());
                second.all_reduce(&buffer, 0, 64).unwrap();
                second.join().unwrap();
                Gpu::open(1).unwrap().synchronize().unwrap();
                // It leaves without a message.
            });
            let stays = Communicator::new(first, 0, 2, &id).unwrap();
            let buffer = Arc::new(first.upload(&[1.0f32; 64]).unwrap());
            stays.all_reduce(&buffer, 0, 64).unwrap();
            stays.join().unwrap();
            first.synchronize().unwrap();
            stays.all_reduce(&buffer, 0, 64).unwrap();
            stays.join().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(500));
                    assert!(stays.abort());
                });
                first.synchronize().unwrap();
            });
        });
    }
}
