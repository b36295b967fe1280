//! Where the BARs of a function are.

use std::io;
use std::sync::Arc;

use crate::config_space::{BarKind, ConfigSpace};
use crate::few::Few;
use crate::{AddressSpace, Bdf, PlacedRegion, Region, Space};

/// A BAR in the machine's address space.
struct PlacedBar {
    index: u8,
    region: Box<dyn PlacedRegion>,
    /// Where it answers.
    at: Option<u64>,
}

/// Where the BARs of a function are.
#[derive(Default)]
pub(crate) struct Placement {
    bars: Vec<PlacedBar>,
    failures: Few,
}

impl Placement {
    /// Makes a BAR known to the machine; it answers nowhere yet.
    pub fn add(
        &mut self,
        index: u8,
        kind: BarKind,
        region: Arc<dyn Region>,
        space: &dyn AddressSpace,
    ) -> io::Result<()> {
        let kind = match kind {
            BarKind::Io => Space::Io,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => Space::Memory,
        };
        self.bars.push(PlacedBar {
            index,
            region: space.add(kind, region)?,
            at: None,
        });
        Ok(())
    }

    /// Where configuration space wants the BARs, in the order in which they were added.
    pub fn wanted(&self, space: &ConfigSpace) -> Vec<Option<u64>> {
        let bars = self.bars.iter();
        bars.map(|bar| space.decoded_bar(bar.index.into()))
            .collect()
    }

    /// Takes the BARs away that are to be elsewhere, so that they do not stand in each other's way.
    pub fn leave(&mut self, wanted: &[Option<u64>], bdf: Bdf) {
        self.change(wanted, bdf, |at, wanted| {
            (at.is_some() && at != wanted).then_some(None)
        });
    }

    /// Puts the BARs where they are to be.
    pub fn arrive(&mut self, wanted: &[Option<u64>], bdf: Bdf) {
        self.change(wanted, bdf, |at, wanted| (at != wanted).then_some(wanted));
    }

    fn change(
        &mut self,
        wanted: &[Option<u64>],
        bdf: Bdf,
        next: impl Fn(Option<u64>, Option<u64>) -> Option<Option<u64>>,
    ) {
        for (bar, wanted) in self.bars.iter_mut().zip(wanted) {
            let Some(address) = next(bar.at, *wanted) else {
                continue;
            };
            match bar.region.place(address) {
                Ok(()) => bar.at = address,
                Err(error) => {
                    bar.at = None;
                    if self.failures.another() {
                        let index = bar.index;
                        log::warn!(
                            "{bdf}: BAR {index} cannot be at {:#x}, so it is nowhere: {error}",
                            address.unwrap_or_default()
                        );
                    }
                }
            }
        }
    }
}
