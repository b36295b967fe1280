//! Threads of an image that may wait, for work that queues' threads do not do themselves.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::qcow2::{Disk, Work};
use super::scatter::Scatter;

/// Threads of an image. Work that changes where bytes are is done one after the other; the others read.
const THREADS: usize = 4;

/// Something to do. There is at most as much as queues have requests under way.
struct Task {
    work: Work,
    scatter: Scatter,
    synchronous: bool,
    user: u16,
    replies: Arc<Replies>,
}

/// What came of it.
pub struct Reply {
    /// Whose it was.
    pub user: u16,
    /// The buffers that were given.
    pub scatter: Scatter,
    /// Bytes that were moved, or the error's number less than zero.
    pub result: i32,
    /// The error.
    pub error: Option<io::Error>,
}

/// Replies for one queue.
struct Replies {
    list: Mutex<Vec<Reply>>,
    arrived: Condvar,
    event: EventFd,
}

struct Tasks {
    state: Mutex<State>,
    changed: Condvar,
    disk: Arc<Disk>,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    ends: bool,
}

/// The threads. Dropping it ends them.
pub struct Pool {
    tasks: Arc<Tasks>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The host has no room for them.
    pub fn start(disk: Arc<Disk>) -> io::Result<Self> {
        let tasks = Arc::new(Tasks {
            state: Mutex::default(),
            changed: Condvar::new(),
            disk,
        });
        let mut pool = Self {
            tasks,
            threads: Vec::new(),
        };
        for number in 0..THREADS {
            let tasks = Arc::clone(&pool.tasks);
            let builder = thread::Builder::new().name(format!("qcow2 {number}"));
            pool.threads.push(builder.spawn(move || tasks.work())?);
        }
        Ok(pool)
    }

    /// A way for one queue to give work.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn port(&self) -> io::Result<Port> {
        Ok(Port {
            tasks: Arc::clone(&self.tasks),
            replies: Arc::new(Replies {
                list: Mutex::default(),
                arrived: Condvar::new(),
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            }),
            under_way: 0,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.tasks.lock().ends = true;
        self.tasks.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            let Task {
                work,
                mut scatter,
                synchronous,
                user,
                replies,
            } = task;
            let (result, error) = match self.disk.perform(work, &mut scatter, synchronous) {
                // At most what is done at once.
                Ok(moved) => (i32::try_from(moved).unwrap_or(i32::MAX), None),
                Err(error) => {
                    let number = error.raw_os_error().filter(|number| *number > 0);
                    (-number.unwrap_or(libc::EIO), Some(error))
                }
            };
            replies.lock().push(Reply {
                user,
                scatter,
                result,
                error,
            });
            replies.arrived.notify_all();
            // A full counter is as good.
            let _ = replies.event.write(1);
        }
    }

    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.ends {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue's way to the threads. Dropping it waits until nothing is under way.
pub struct Port {
    tasks: Arc<Tasks>,
    replies: Arc<Replies>,
    under_way: usize,
}

impl Port {
    /// Readable when there are replies.
    pub fn event(&self) -> &EventFd {
        &self.replies.event
    }

    /// Gives work, and the buffers for it.
    pub fn give(&mut self, work: Work, scatter: Scatter, synchronous: bool, user: u16) {
        self.under_way += 1;
        self.tasks.lock().tasks.push_back(Task {
            work,
            scatter,
            synchronous,
            user,
            replies: Arc::clone(&self.replies),
        });
        self.tasks.changed.notify_one();
    }

    /// A reply that has come.
    pub fn next(&mut self) -> Option<Reply> {
        let reply = self.replies.lock().pop()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(reply)
    }

    /// Whether there is work of which no reply was taken.
    pub fn is_busy(&self) -> bool {
        self.under_way > 0
    }

    /// Waits until a reply has come.
    pub fn wait(&self) {
        let mut list = self.replies.lock();
        while list.is_empty() && self.is_busy() {
            let waited = self.replies.arrived.wait(list);
            list = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        while self.is_busy() {
            self.wait();
            while self.next().is_some() {}
        }
    }
}
