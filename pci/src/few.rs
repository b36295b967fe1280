//! What guests can make happen at will, said a few times only.

use std::sync::atomic::{AtomicU32, Ordering};

/// Something that guests can make happen at will and that is logged a few times only.
#[derive(Default)]
pub(crate) struct Few(AtomicU32);

impl Few {
    const MOST: u32 = 3;

    /// Whether it is still to be logged.
    pub fn another(&self) -> bool {
        let count = |n| (n < Self::MOST).then_some(n + 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, count)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_few() {
        let few = Few::default();
        let logged = (0..100).filter(|_| few.another()).count();
        assert_eq!(logged, 3);
    }
}
