//! The device behind a function, and what happens when it does not answer any more.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::Bdf;
use crate::access::pieces;
use crate::device::{DeviceError, IrqKind, SharedDevice};
use crate::few::Few;

/// Told once, when the device is lost.
pub type OnLost = Box<dyn Fn(&DeviceError) + Send + Sync>;

/// A device that may get lost. Nothing is asked of a lost one, and all that it would answer is ones.
pub(super) struct Link {
    device: SharedDevice,
    bdf: Bdf,
    lost: AtomicBool,
    on_lost: OnLost,
    refusals: Few,
}

impl Link {
    /// A device that is there.
    pub fn new(device: SharedDevice, bdf: Bdf, on_lost: OnLost) -> Self {
        Self {
            device,
            bdf,
            lost: AtomicBool::new(false),
            on_lost,
            refusals: Few::default(),
        }
    }

    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Whether it is worth asking the device for something.
    pub fn check(&self) -> Result<(), DeviceError> {
        match self.is_lost() {
            true => Err(DeviceError::Lost(io::ErrorKind::NotConnected.into())),
            false => Ok(()),
        }
    }

    /// Gives the device up.
    pub fn lose(&self, error: &DeviceError) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            (self.on_lost)(error);
        }
    }

    pub fn can_reset(&self) -> bool {
        self.device.can_reset()
    }

    /// Reads `data` in pieces of at most `most` bytes; what cannot be read is ones. The access lies
    /// inside the region.
    ///
    /// # Returns
    /// Whether all could be read.
    pub fn read(&self, region: u32, offset: u64, data: &mut [u8], most: usize) -> bool {
        let mut complete = true;
        for (at, part) in pieces(offset, data.len(), most) {
            let piece = &mut data[part];
            let what = format_args!("reading region {region} at {at:#x}");
            if self
                .ask(what, || self.device.read(region, at, piece))
                .is_err()
            {
                piece.fill(0xff);
                complete = false;
            }
        }
        complete
    }

    /// Writes `data` in pieces of at most `most` bytes, as far as the device lets it.
    pub fn write(&self, region: u32, offset: u64, data: &[u8], most: usize) {
        for (at, part) in pieces(offset, data.len(), most) {
            let what = format_args!("writing region {region} at {at:#x}");
            // What a guest writes to a device that refuses it is lost, as on a bus.
            let _ = self.ask(what, || self.device.write(region, at, &data[part]));
        }
    }

    /// Whether the device sends interrupts of `kind` to `events` now.
    pub fn set_irqs(&self, kind: IrqKind, events: &[Option<&EventFd>]) -> bool {
        let what = format_args!("setting up {} {kind:?} interrupts", events.len());
        self.ask(what, || self.device.set_irqs(kind, events))
            .is_ok()
    }

    /// Whether the wired interrupt is unmasked by `event` now.
    pub fn unmask_intx_on(&self, event: &EventFd) -> bool {
        let what = format_args!("passing on the end of INTx");
        self.ask(what, || self.device.unmask_intx_on(event)).is_ok()
    }

    /// Resets the device.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.ask(format_args!("the reset"), || self.device.reset())
    }

    fn ask(
        &self,
        what: fmt::Arguments,
        request: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.check()?;
        let result = request();
        match &result {
            Err(error @ DeviceError::Lost(_)) => self.lose(error),
            Err(DeviceError::Refused(source)) if self.refusals.another() => {
                log::warn!("{}: the device refused {what}: {source}", self.bdf);
            }
            Err(DeviceError::Refused(_)) | Ok(()) => {}
        }
        result
    }
}
