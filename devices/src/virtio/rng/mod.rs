//! A source of randomness (section 5.4).

mod device;
mod worker;

#[cfg(test)]
mod tests;

pub use device::Rng;
