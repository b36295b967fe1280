//! Which kind of interrupts a device has turned on: MSI-X before MSI before INTx, one at a time.

use std::sync::Arc;

use super::intx::Intx;
use super::lost::Link;
use super::msi::Msi;
use crate::device::IrqKind;
use crate::few::Few;
use crate::vectors::Vectors;
use crate::{MsiSource, MsixTable, ResampledLine};

/// What configuration space says about interrupts.
pub(super) struct Wanted {
    /// Message control of MSI-X.
    pub msix_control: u16,
    /// MSI, if it is on.
    pub msi: Option<Msi>,
    /// Whether the command register turns INTx off.
    pub intx_disabled: bool,
}

/// What the device has turned on.
enum Active {
    Nothing,
    Intx,
    Msi(Vectors),
    Msix(Vectors),
    /// It was asked for this kind and refused.
    Refused(IrqKind),
}

/// The interrupts of a function.
pub(super) struct Interrupts {
    source: Arc<dyn MsiSource>,
    intx: Option<Intx>,
    /// What the guest has set up.
    pub msix: MsixTable,
    active: Active,
    failures: Few,
}

impl Interrupts {
    /// Nothing is turned on yet.
    pub fn new(
        source: Arc<dyn MsiSource>,
        line: Option<Arc<dyn ResampledLine>>,
        msix_vectors: u16,
    ) -> Self {
        Self {
            source,
            intx: line.map(Intx::new),
            msix: MsixTable::new(msix_vectors),
            active: Active::Nothing,
            failures: Few::default(),
        }
    }

    /// Makes the device do what configuration space says.
    pub fn follow(&mut self, link: &Link, wanted: &Wanted) {
        self.msix.set_control(wanted.msix_control);
        let kind = if self.msix.is_enabled() {
            Some(IrqKind::Msix)
        } else if wanted.msi.is_some() {
            Some(IrqKind::Msi)
        } else if self.intx.as_ref().is_some_and(Intx::is_available) && !wanted.intx_disabled {
            Some(IrqKind::Intx)
        } else {
            None
        };
        let is_resized = match (&self.active, &wanted.msi) {
            (Active::Msi(vectors), Some(msi)) => vectors.len() != msi.count,
            _ => false,
        };
        if self.kind() != kind || is_resized {
            self.turn_off(link);
            self.turn_on(link, kind, wanted.msi.as_ref());
        }
        self.set_messages(link, wanted.msi.as_ref());
    }

    fn kind(&self) -> Option<IrqKind> {
        match self.active {
            Active::Nothing => None,
            Active::Intx => Some(IrqKind::Intx),
            Active::Msi(_) => Some(IrqKind::Msi),
            Active::Msix(_) => Some(IrqKind::Msix),
            Active::Refused(kind) => Some(kind),
        }
    }

    /// Turns everything off, and gives the vectors back when the device has let go of them.
    pub fn turn_off(&mut self, link: &Link) {
        if let Some(kind) = self.kind()
            && !matches!(self.active, Active::Refused(_))
        {
            link.set_irqs(kind, &[]);
        }
        self.active = Active::Nothing;
    }

    /// Gives vectors and the line back to the machine, whatever the device thinks of it.
    pub fn abandon(&mut self) {
        self.active = Active::Nothing;
        self.intx = None;
    }

    /// Puts the table back to how it was at the start.
    pub fn forget(&mut self) {
        self.msix = MsixTable::new(self.msix.vectors());
    }

    fn turn_on(&mut self, link: &Link, kind: Option<IrqKind>, msi: Option<&Msi>) {
        let count = match kind {
            None => return,
            Some(IrqKind::Intx) => {
                let connected = self.intx.as_mut().is_some_and(|intx| intx.connect(link));
                self.active = match connected {
                    true => Active::Intx,
                    false => Active::Refused(IrqKind::Intx),
                };
                return;
            }
            Some(IrqKind::Msi) => msi.map_or(0, |msi| msi.count),
            Some(IrqKind::Msix) => self.msix.vectors().into(),
        };
        let vectors = Vectors::new(&*self.source, link.bdf(), count, &self.failures);
        self.active = match kind {
            Some(IrqKind::Msi) => Active::Msi(vectors),
            _ => Active::Msix(vectors),
        };
        // An interrupt that comes at once finds its message.
        self.set_messages(link, msi);
        let (kind, vectors) = match &self.active {
            Active::Msi(vectors) => (IrqKind::Msi, vectors),
            Active::Msix(vectors) => (IrqKind::Msix, vectors),
            Active::Nothing | Active::Intx | Active::Refused(_) => return,
        };
        if !link.set_irqs(kind, &vectors.events()) {
            self.active = Active::Refused(kind);
        }
    }

    fn set_messages(&mut self, link: &Link, msi: Option<&Msi>) {
        match (&mut self.active, msi) {
            (Active::Msix(vectors), _) => {
                for index in 0..vectors.len() {
                    let message = self.msix.message(index);
                    vectors.set_message(index, message, link.bdf(), &self.failures);
                }
            }
            (Active::Msi(vectors), Some(msi)) => {
                for index in 0..vectors.len() {
                    vectors.set_message(index, msi.message(index), link.bdf(), &self.failures);
                }
            }
            (Active::Msi(_) | Active::Nothing | Active::Intx | Active::Refused(_), _) => {}
        }
    }

    /// A guest's write to the table of MSI-X.
    pub fn write_table(&mut self, link: &Link, offset: usize, data: &[u8]) {
        let touched = self.msix.write(offset, data);
        if let Active::Msix(vectors) = &mut self.active {
            for index in touched {
                let message = self.msix.message(index);
                vectors.set_message(index, message, link.bdf(), &self.failures);
            }
        }
    }
}
