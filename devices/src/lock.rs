//! Locking that a panic elsewhere does not spread through.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, poisoned or not.
///
/// Registers are plain values that are consistent between any two statements, so a thread that
/// died with the lock held is no reason for every vCPU to die as well.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
