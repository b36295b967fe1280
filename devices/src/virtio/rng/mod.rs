//! A source of randomness (section 5.4).

mod device;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod worker;

#[cfg(test)]
mod tests;

pub use device::Rng;
