//! Events: points in a device's work, and the times between them.

use cudarc::driver::{result as driver, sys};

use super::gpu::Gpu;
use super::{Error, Result};

/// A point in a device's work.
#[derive(Debug)]
pub struct Event {
    event: sys::CUevent,
    gpu: Gpu,
}

// SAFETY: a handle.
unsafe impl Send for Event {}
// SAFETY: as above; the driver lets any thread wait for it and record it.
unsafe impl Sync for Event {}

impl Event {
    /// Records the work submitted to the device so far.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn record(&self) -> Result<()> {
        let _bound = self.gpu.bind()?;
        // SAFETY: both handles are alive.
        unsafe { driver::event::record(self.event, self.gpu.stream()) }.map_err(Error::driver("cuEventRecord"))
    }

    /// Whether the device has reached it.
    pub fn is_done(&self) -> bool {
        // SAFETY: the handle is alive.
        self.gpu.bind().is_ok_and(|_bound| unsafe { driver::event::query(self.event) }.is_ok())
    }

    /// Waits until the device has reached it.
    ///
    /// # Errors
    /// If work before it failed.
    pub fn wait(&self) -> Result<()> {
        let _bound = self.gpu.bind()?;
        // SAFETY: the handle is alive.
        unsafe { driver::event::synchronize(self.event) }.map_err(Error::driver("cuEventSynchronize"))
    }

    /// Milliseconds from this to a later event; both must be done.
    ///
    /// # Errors
    /// If they are not.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32> {
        // SAFETY: both handles are alive.
        unsafe { driver::event::elapsed(self.event, later.event) }.map_err(Error::driver("cuEventElapsedTime"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_bound) = self.gpu.bind() {
            // SAFETY: it is destroyed once.
            let _ = unsafe { driver::event::destroy(self.event) };
        }
    }
}

impl Gpu {
    /// An event, to be recorded.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn event(self) -> Result<Event> {
        let _bound = self.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        Ok(Event { event: driver::event::create(flags).map_err(Error::driver("cuEventCreate"))?, gpu: self })
    }

    /// Milliseconds of each of `repeats` calls, by events on the device.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn time(self, repeats: usize, mut f: impl FnMut() -> Result<()>) -> Result<Vec<f32>> {
        let mut times = Vec::with_capacity(repeats);
        let (from, to) = (self.event()?, self.event()?);
        for _ in 0..repeats {
            from.record()?;
            f()?;
            to.record()?;
            to.wait()?;
            times.push(from.milliseconds_to(&to)?);
        }
        Ok(times)
    }
}
