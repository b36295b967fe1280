//! Registers of configuration space that do something.

use std::ops::Range;
use std::sync::Arc;

use super::{Capability, EmulatedError};
use crate::config_space::ConfigSpace;

/// Registers in one capability that do something when they are accessed, such as the window to BARs
/// that virtio has (Virtio 1.3, section 4.1.4.9).
///
/// Called from any vCPU thread, one at a time, with configuration space locked: it must not call the
/// function. It may use the function's interrupts. `capability` is the capability's offset in
/// `space`; `touched` are those of its registers that the guest accesses, as offsets in the
/// capability, and never empty.
pub trait ConfigHook: Send + Sync {
    /// Which capability it is, by its position in [`EmulatedParts::capabilities`].
    ///
    /// [`EmulatedParts::capabilities`]: super::EmulatedParts::capabilities
    fn capability(&self) -> usize;

    /// The registers, as offsets in the capability, whose header is at 0.
    fn registers(&self) -> Range<usize>;

    /// A guest is about to read what `space` has in `touched`.
    fn read(&self, space: &mut ConfigSpace, capability: usize, touched: Range<usize>);

    /// A guest has written to `touched`, as far as it may; `space` has the result.
    fn written(&self, space: &mut ConfigSpace, capability: usize, touched: Range<usize>);
}

/// A hook, and where it is.
pub(super) struct Hook {
    hook: Arc<dyn ConfigHook>,
    capability: usize,
    /// In configuration space.
    registers: Range<usize>,
}

impl Hook {
    /// Places a hook among `capabilities`, which are at `offsets`.
    pub fn new(
        hook: Arc<dyn ConfigHook>,
        capabilities: &[Capability],
        offsets: &[usize],
    ) -> Result<Self, EmulatedError> {
        const HEADER: usize = 2;
        let position = hook.capability();
        let Range { start, end } = hook.registers();
        let capability = capabilities.get(position).zip(offsets.get(position));
        let capability = capability
            .filter(|(capability, _)| start < end && end <= HEADER + capability.body.len());
        let Some((_, &at)) = capability else {
            return Err(EmulatedError::Hook {
                capability: position,
                start,
                end,
            });
        };
        Ok(Self {
            hook,
            capability: at,
            registers: at + start..at + end,
        })
    }

    /// A guest is about to read these bytes of configuration space.
    pub fn read(&self, space: &mut ConfigSpace, accessed: Range<usize>) {
        if let Some(touched) = self.touched(accessed) {
            self.hook.read(space, self.capability, touched);
        }
    }

    /// A guest has written these bytes of configuration space.
    pub fn written(&self, space: &mut ConfigSpace, accessed: Range<usize>) {
        if let Some(touched) = self.touched(accessed) {
            self.hook.written(space, self.capability, touched);
        }
    }

    fn touched(&self, accessed: Range<usize>) -> Option<Range<usize>> {
        let start = accessed.start.max(self.registers.start);
        let end = accessed.end.min(self.registers.end);
        (start < end).then(|| start - self.capability..end - self.capability)
    }
}
