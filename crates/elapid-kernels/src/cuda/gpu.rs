//! A device and the kernels on it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use cudarc::cublaslt::sys::cublasLtHandle_t;
use cudarc::driver::{result as driver, sys};

use super::compile::{self, Define, Source};
use super::library::{self, Needed};
use super::{Error, Result, blas};

/// A GPU, opened once per process; cheap to copy.
#[derive(Clone, Copy)]
pub struct Gpu(&'static Inner);

struct Inner {
    ordinal: usize,
    name: String,
    capability: (u32, u32),
    multiprocessors: usize,
    total_memory: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// By source and constants; each has a lock of its own, so that different ones are compiled at the same time.
    modules: Mutex<HashMap<UnitKey, Arc<Mutex<Option<Module>>>>>,
    kernels: Mutex<HashMap<(UnitKey, &'static str), Kernel>>,
    caches: Mutex<HashMap<TypeId, &'static (dyn Any + Send + Sync)>>,
    blas: OnceLock<blas::Blas>,
    calls: Mutex<Calls>,
    /// Notified when a capture ends, and when no call is in progress.
    quiet: Condvar,
    launches: AtomicU64,
    /// Whether some thread captures: spares others the lock of `calls`.
    capturing: AtomicBool,
}

/// A source's address, and its name with the constants.
type UnitKey = (usize, String);

/// There is one stream, and what any thread asks of it while it is captured lands in the graph: a capture begins between
/// calls, and calls of other threads wait for its end.
#[derive(Debug, Default)]
pub(super) struct Calls {
    captor: Option<ThreadId>,
    under_way: usize,
}

/// A driver call in progress, with the device's context current on this thread.
#[must_use = "a capture may begin as soon as it is dropped"]
pub(crate) struct Bound(Gpu);

impl Drop for Bound {
    fn drop(&mut self) {
        let mut calls = lock(&self.0.0.calls);
        calls.under_way -= 1;
        if calls.under_way == 0 {
            self.0.0.quiet.notify_all();
        }
    }
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: handles of the driver may be used from any thread that makes the context current.
unsafe impl Send for Inner {}
// SAFETY: as above; mutable fields are behind locks.
unsafe impl Sync for Inner {}
// SAFETY: a handle.
unsafe impl Send for Module {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.0.ordinal, self.0.name)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        self.0.ordinal == other.0.ordinal
    }
}

impl Eq for Gpu {}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of GPUs.
///
/// # Errors
/// If the driver is missing or does not start.
pub fn count() -> Result<usize> {
    library::load(Needed::Driver)?;
    driver::init().map_err(Error::driver("cuInit"))?;
    let count = driver::device::get_count().map_err(Error::driver("cuDeviceGetCount"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Gpu {
    /// Opens a device, or returns the one already open.
    ///
    /// # Errors
    /// If the driver, NVRTC or cuBLASLt is missing, or there is no such device.
    pub fn open(ordinal: usize) -> Result<Self> {
        static OPEN: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());
        let mut open = lock(&OPEN);
        if let Some(gpu) = open.iter().find(|gpu| gpu.0.ordinal == ordinal) {
            return Ok(*gpu);
        }
        let found = count()?;
        if ordinal >= found {
            let found = match found {
                0 => "this machine has no GPU that the driver can use".to_owned(),
                1 => "this machine has one GPU, cuda:0".to_owned(),
                n => format!("this machine has {n} GPUs, cuda:0 to cuda:{}", n - 1),
            };
            return Err(Error::NoDevice { ordinal, found });
        }
        library::load(Needed::Nvrtc)?;
        library::load(Needed::CublasLt)?;
        let gpu = Self(Box::leak(Box::new(Inner::open(ordinal)?)));
        open.push(gpu);
        Ok(gpu)
    }

    /// Its number.
    pub fn ordinal(self) -> usize {
        self.0.ordinal
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Compute capability: (9, 0) for Hopper.
    pub fn capability(self) -> (u32, u32) {
        self.0.capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(self) -> usize {
        self.0.multiprocessors
    }

    /// Memory in bytes.
    pub fn total_memory(self) -> usize {
        self.0.total_memory
    }

    /// Makes the device's context current on this thread, and blocks captures by other threads while the result lives.
    pub(crate) fn bind(self) -> Result<Bound> {
        self.wait_for_capture().under_way += 1;
        let bound = Bound(self);
        // SAFETY: the primary context is never released.
        unsafe { driver::ctx::set_current(self.0.context) }.map_err(Error::driver("cuCtxSetCurrent"))?;
        Ok(bound)
    }

    /// The one stream.
    pub(crate) fn stream(self) -> sys::CUstream {
        self.0.stream
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// If some of it failed.
    pub fn synchronize(self) -> Result<()> {
        let _bound = self.bind()?;
        // SAFETY: the stream lives as long as the process.
        unsafe { driver::stream::synchronize(self.0.stream) }.map_err(Error::driver("cuStreamSynchronize"))
    }

    /// A kernel with constants, compiled at its first use.
    ///
    /// # Errors
    /// If it does not compile or load.
    pub fn kernel(self, source: &'static Source, entry: &'static str, defines: &[Define]) -> Result<Kernel> {
        let unit = defines.iter().fold(source.name.to_owned(), |unit, define| format!("{unit} {define}"));
        // By the source itself, too: two may have one name.
        let key = ((std::ptr::from_ref(source) as usize, unit), entry);
        if let Some(kernel) = lock(&self.0.kernels).get(&key) {
            return Ok(*kernel);
        }
        let _bound = self.bind()?;
        let module = self.module(source, defines, key.0.clone())?;
        let name = CString::new(entry).unwrap_or_default();
        // SAFETY: the module stays loaded.
        let function = unsafe { driver::module::get_function(module.0, name) }.map_err(|error| Error::Compile {
            source_name: source.name,
            options: key.0.1.clone(),
            log: format!("no kernel `{entry}` in it: {error:?}"),
        })?;
        let kernel = Kernel(Box::leak(Box::new(Function { function, shared: Mutex::new(48 << 10), gpu: self })));
        lock(&self.0.kernels).insert(key, kernel);
        Ok(kernel)
    }

    fn module(self, source: &'static Source, defines: &[Define], unit: UnitKey) -> Result<Module> {
        let place = lock(&self.0.modules).entry(unit).or_default().clone();
        let mut place = lock(&place);
        if let Some(module) = *place {
            return Ok(module);
        }
        let image = compile::cached(source, defines, self.0.capability)?;
        // SAFETY: the image is what NVRTC gave.
        let module = unsafe { driver::module::load_data(image.code.as_ptr().cast()) };
        let module = match module {
            Ok(module) => module,
            // Cached by another driver, or unsuitable for this one: compile it here.
            Err(_) => {
                let image = compile::compile(source, defines, self.0.capability)?;
                // SAFETY: as above.
                unsafe { driver::module::load_data(image.code.as_ptr().cast()) }
                    .map_err(Error::driver("cuModuleLoadData"))?
            }
        };
        Ok(*place.insert(Module(module)))
    }

    /// A value that an operation caches for this device, by its type.
    pub(crate) fn cache<C: Default + Send + 'static>(self) -> &'static Mutex<C> {
        let mut caches = lock(&self.0.caches);
        let cache = *caches
            .entry(TypeId::of::<Mutex<C>>())
            .or_insert_with(|| Box::leak(Box::new(Mutex::new(C::default()))) as &'static (dyn Any + Send + Sync));
        match cache.downcast_ref() {
            Some(cache) => cache,
            None => unreachable!("caches are filed by their type"),
        }
    }

    /// cuBLASLt's handle and the stream.
    pub(crate) fn blas(self) -> Result<(Bound, cublasLtHandle_t, sys::CUstream)> {
        let bound = self.bind()?;
        let blas = match self.0.blas.get() {
            Some(blas) => blas,
            None => {
                let blas = blas::Blas::new()?;
                self.0.blas.get_or_init(|| blas)
            }
        };
        Ok((bound, blas.handle(), self.0.stream))
    }

    /// Whether the work that this thread submits is captured into a graph instead of being run.
    pub fn is_capturing(self) -> bool {
        lock(&self.0.calls).captor == Some(std::thread::current().id())
    }

    /// Whether some thread captures. Quick, and certain of this thread: it is its own capture that it set.
    pub(crate) fn is_any_capturing(self) -> bool {
        self.0.capturing.load(Ordering::Relaxed)
    }

    /// Makes every other thread wait that wants something of the device, until [`end_capture`](Self::end_capture); waits
    /// itself for calls under way.
    pub(crate) fn begin_capture(self) {
        let mut calls = lock(&self.0.calls);
        while calls.captor.is_some() || calls.under_way > 0 {
            calls = self.0.quiet.wait(calls).unwrap_or_else(PoisonError::into_inner);
        }
        calls.captor = Some(std::thread::current().id());
        self.0.capturing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end_capture(self) {
        lock(&self.0.calls).captor = None;
        self.0.capturing.store(false, Ordering::Relaxed);
        self.0.quiet.notify_all();
    }

    pub(super) fn wait_for_capture(&self) -> MutexGuard<'_, Calls> {
        let mut calls = lock(&self.0.calls);
        if calls.captor.is_some() {
            let me = std::thread::current().id();
            while calls.captor.is_some_and(|captor| captor != me) {
                calls = self.0.quiet.wait(calls).unwrap_or_else(PoisonError::into_inner);
            }
        }
        calls
    }

    /// Number of kernels and products launched or captured so far.
    pub fn launches(self) -> u64 {
        self.0.launches.load(Ordering::Relaxed)
    }

    pub(crate) fn count_launch(self) {
        self.0.launches.fetch_add(1, Ordering::Relaxed);
    }
}

impl Inner {
    fn open(ordinal: usize) -> Result<Self> {
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let device = driver::device::get(number).map_err(Error::driver("cuDeviceGet"))?;
        let name = driver::device::get_name(device).map_err(Error::driver("cuDeviceGetName"))?;
        let attribute = |attribute| {
            // SAFETY: the device exists.
            let value = unsafe { driver::device::get_attribute(device, attribute) };
            value.map(i32::cast_unsigned).map_err(Error::driver("cuDeviceGetAttribute"))
        };
        use sys::CUdevice_attribute as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let (major, minor) = capability;
            let found = format!("{name} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed");
            return Err(Error::NoDevice { ordinal, found });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // SAFETY: the device exists.
        let total_memory = unsafe { driver::device::total_mem(device) }.map_err(Error::driver("cuDeviceTotalMem"))?;
        // SAFETY: the device exists; the context is never released.
        let context =
            unsafe { driver::primary_ctx::retain(device) }.map_err(Error::driver("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was just made.
        unsafe { driver::ctx::set_current(context) }.map_err(Error::driver("cuCtxSetCurrent"))?;
        let stream =
            driver::stream::create(driver::stream::StreamKind::NonBlocking).map_err(Error::driver("cuStreamCreate"))?;
        Ok(Self {
            ordinal,
            name,
            capability,
            multiprocessors,
            total_memory,
            context,
            stream,
            modules: Mutex::default(),
            kernels: Mutex::default(),
            caches: Mutex::default(),
            blas: OnceLock::new(),
            calls: Mutex::default(),
            quiet: Condvar::new(),
            launches: AtomicU64::new(0),
            capturing: AtomicBool::new(false),
        })
    }
}

/// A loaded kernel; cheap to copy.
#[derive(Clone, Copy)]
pub struct Kernel(&'static Function);

struct Function {
    function: sys::CUfunction,
    /// Maximum dynamic shared memory.
    shared: Mutex<u32>,
    gpu: Gpu,
}

// SAFETY: a handle.
unsafe impl Send for Function {}
// SAFETY: a handle.
unsafe impl Sync for Function {}

/// Launch configuration of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: (u32, u32, u32),
    /// Threads per block.
    pub block: (u32, u32, u32),
    /// Bytes of dynamic shared memory per block.
    pub shared: u32,
    /// Whether it may begin before the previous launch has ended, if that lets it (`let_next_start`); the kernel then waits
    /// itself (`wait_for_previous`). What it reads before must not be written by launches that let others begin: those write
    /// activations and their gradients, never weights.
    pub overlap: bool,
}

impl Launch {
    /// `grid` blocks of `block` threads in one dimension.
    pub fn linear(grid: usize, block: u32) -> Self {
        let grid = u32::try_from(grid).unwrap_or(u32::MAX);
        Self { grid: (grid, 1, 1), block: (block, 1, 1), shared: 0, overlap: false }
    }

    /// The same, beginning before the previous launch has ended.
    #[must_use]
    pub fn overlapping(self) -> Self {
        Self { overlap: true, ..self }
    }
}

impl Kernel {
    /// Launches it with one argument; nothing for an empty grid.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// `A` must be laid out as the kernel's argument, and its addresses must be valid for the kernel's accesses until the
    /// stream has passed the launch.
    pub unsafe fn launch<A: Copy>(&self, launch: Launch, args: &A) -> Result<()> {
        let Function { function, shared, gpu } = self.0;
        let Launch { grid, block, .. } = launch;
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let _bound = gpu.bind()?;
        let mut allowed = lock(shared);
        if launch.shared > *allowed {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
            let bytes = i32::try_from(launch.shared).unwrap_or(i32::MAX);
            // SAFETY: the function stays loaded.
            unsafe { driver::function::set_function_attribute(*function, MAX_SHARED, bytes) }
                .map_err(Error::driver("cuFuncSetAttribute"))?;
            *allowed = launch.shared;
        }
        drop(allowed);
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        gpu.count_launch();
        // SAFETY: an attribute is plain bytes; those not set are 0.
        let mut overlap: sys::CUlaunchAttribute = unsafe { MaybeUninit::zeroed().assume_init() };
        overlap.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        overlap.value.programmaticStreamSerializationAllowed = 1;
        let overlaps = launch.overlap && gpu.capability() >= (9, 0);
        let config = sys::CUlaunchConfig_st {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: grid.2,
            blockDimX: block.0,
            blockDimY: block.1,
            blockDimZ: block.2,
            sharedMemBytes: launch.shared,
            hStream: gpu.stream(),
            attrs: &mut overlap,
            numAttrs: u32::from(overlaps),
        };
        // SAFETY: the caller vouches for the argument; configuration and handles are valid.
        let status =
            unsafe { sys::cuLaunchKernelEx(&config, *function, parameters.as_mut_ptr(), std::ptr::null_mut()) };
        status.result().map_err(Error::driver("cuLaunchKernelEx"))
    }

    /// Blocks of `block` threads with `shared` bytes that fit on one multiprocessor at a time.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn resident_blocks(&self, block: u32, shared: u32) -> Result<usize> {
        let _bound = self.0.gpu.bind()?;
        let block = i32::try_from(block).unwrap_or(i32::MAX);
        let mut count = 0;
        // SAFETY: the function stays loaded.
        let status = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut count, self.0.function, block, shared as usize)
        };
        status.result().map_err(Error::driver("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}
