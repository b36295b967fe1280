//! Accepts connections and keeps account of them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::connection::{refuse, serve};
use super::request::Refusal;
use super::response::{After, encode};
use super::sys::{self, Event, For};
use super::{Limits, Service, Socket};

/// Refused connections that are kept open until their clients have read why.
const MAX_REFUSED: usize = 32;

/// Connections that may still be there of those that were closed to make room for others.
const MAX_ENDING: usize = 64;

/// How long nothing is accepted after there were no descriptors for it.
const PAUSE: Duration = Duration::from_millis(100);

/// A server. It stops when it is dropped.
///
/// To stop, it accepts no further connection, removes the socket's file and closes connections without
/// a request. Requests that are being answered have [`Limits::drain`] to finish; what is left of them
/// then is cut off. Do not drop it from within the service.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves connections to `socket`.
    ///
    /// # Errors
    ///
    /// There is no descriptor or no thread to be had.
    pub fn start(socket: Socket, service: Arc<dyn Service>, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            service,
            limits,
            stop: Event::new()?,
            stopping: AtomicBool::new(false),
            wake: Event::new()?,
            table: Mutex::default(),
            ended: Condvar::new(),
        });
        let acceptor = thread::Builder::new().name("http-accept".to_owned());
        let acceptor = acceptor.spawn({
            let shared = shared.clone();
            move || Acceptor::new(socket, shared).run()
        })?;
        Ok(Self {
            shared,
            acceptor: Some(acceptor),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::Release);
        shared.stop.signal();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let mut left = shared.wait_for_all(shared.limits.drain);
        if left > 0 {
            shared.cut_off();
            left = shared.wait_for_all(shared.limits.linger);
        }
        shared.reap();
        if left > 0 {
            log::warn!("{left} API requests are still being carried out");
        }
    }
}

/// What the server's threads share.
pub(super) struct Shared {
    pub(super) service: Arc<dyn Service>,
    pub(super) limits: Limits,
    /// Readable once the server stops, and from then on.
    pub(super) stop: Event,
    stopping: AtomicBool,
    /// Wakes the acceptor: a connection has ended.
    wake: Event,
    table: Mutex<HashMap<u64, Entry>>,
    /// A connection has ended.
    ended: Condvar,
}

/// One connection and its thread.
struct Entry {
    /// `None` once it has ended.
    stream: Option<Arc<UnixStream>>,
    state: State,
    thread: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is a request.
    Busy,
    /// There has been none since.
    Idle(Instant),
    /// It was closed to make room for another.
    Evicted,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The connection has no request, and may be closed; false if it has been.
    pub(super) fn set_idle(&self, id: u64) -> bool {
        self.set(id, State::Idle(Instant::now()))
    }

    /// The connection has a request; false if it has been closed.
    pub(super) fn set_busy(&self, id: u64) -> bool {
        self.set(id, State::Busy)
    }

    fn set(&self, id: u64, state: State) -> bool {
        match self.table().get_mut(&id) {
            Some(entry) if entry.state != State::Evicted => {
                entry.state = state;
                true
            }
            _ => false,
        }
    }

    /// Closes the connection that has been without a request for longest, if there is one.
    fn evict(&self) -> bool {
        let mut table = self.table();
        let mut idle: Vec<_> = table
            .values_mut()
            .filter_map(|entry| match (entry.state, &entry.stream) {
                (State::Idle(since), Some(stream)) => Some((since, stream, &mut entry.state)),
                _ => None,
            })
            .collect();
        idle.sort_by_key(|(since, ..)| *since);
        // A request that has arrived just now is not lost.
        let silent = idle
            .into_iter()
            .find(|(_, stream, _)| !matches!(sys::peek(stream, &mut [0]), Ok(1..)));
        let Some((_, stream, state)) = silent else {
            return false;
        };
        *state = State::Evicted;
        // Wakes its thread.
        let _ = stream.shutdown(Shutdown::Both);
        true
    }

    /// Whether there is room for one more connection, made if need be.
    fn has_room(&self) -> bool {
        let limit = self.limits.connections;
        let table = self.table();
        let evicted = table.values().filter(|entry| entry.state == State::Evicted);
        let served = table.len() - evicted.count();
        let ending = table.len() - served;
        drop(table);
        served < limit || ending < MAX_ENDING && self.evict()
    }

    /// Starts the thread of a new connection.
    fn open(self: &Arc<Self>, id: u64, stream: UnixStream) -> Result<(), (io::Error, UnixStream)> {
        let stream = Arc::new(stream);
        // The thread waits for the table before it looks for its entry.
        let mut table = self.table();
        let spawned = thread::Builder::new().name(format!("http-{id}")).spawn({
            let shared = self.clone();
            let stream = stream.clone();
            move || {
                let connection = Ended { shared, id };
                serve(&connection.shared, id, &stream);
                // The table's is the last one then: the socket is closed when it goes.
                drop(stream);
            }
        });
        match spawned {
            Ok(thread) => {
                let entry = Entry {
                    stream: Some(stream),
                    state: State::Idle(Instant::now()),
                    thread,
                };
                table.insert(id, entry);
                Ok(())
            }
            Err(error) => {
                drop(table);
                match Arc::try_unwrap(stream) {
                    Ok(stream) => Err((error, stream)),
                    Err(_) => Ok(()),
                }
            }
        }
    }

    /// Waits until no connection is left, and returns the number of those that are.
    fn wait_for_all(&self, limit: Duration) -> usize {
        let open = |table: &HashMap<u64, Entry>| {
            let open = table.values().filter(|entry| entry.stream.is_some());
            open.count()
        };
        let waited = self
            .ended
            .wait_timeout_while(self.table(), limit, |table| open(table) > 0);
        let (table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        open(&table)
    }

    /// Closes all connections, whatever they do.
    fn cut_off(&self) {
        for stream in self
            .table()
            .values()
            .filter_map(|entry| entry.stream.as_ref())
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forgets connections that have ended.
    fn reap(&self) {
        let ended: Vec<_> = self
            .table()
            .extract_if(|_, entry| entry.stream.is_none())
            .collect();
        for (_, entry) in ended {
            let _ = entry.thread.join();
        }
    }
}

/// Says that a connection has ended, however its thread does.
struct Ended {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.table().get_mut(&self.id) {
            entry.stream = None;
        }
        self.shared.ended.notify_all();
        self.shared.wake.signal();
    }
}

/// The thread that accepts connections.
struct Acceptor {
    socket: Socket,
    shared: Arc<Shared>,
    /// Connections that were answered with 503, and until when they are kept.
    refused: VecDeque<(Instant, UnixStream)>,
    next_id: u64,
    /// Whether the last attempt to accept failed.
    fails: bool,
}

impl Acceptor {
    fn new(socket: Socket, shared: Arc<Shared>) -> Self {
        Self {
            socket,
            shared,
            refused: VecDeque::new(),
            next_id: 0,
            fails: false,
        }
    }

    fn run(mut self) {
        while !self.shared.is_stopping() {
            let ready = sys::wait(
                [
                    (self.socket.listener().as_fd(), For::Input),
                    (self.shared.wake.as_fd(), For::Input),
                    (self.shared.stop.as_fd(), For::Input),
                ],
                self.refused.front().map(|(until, _)| *until),
            );
            match ready {
                Ok([connects, ..]) => {
                    self.shared.wake.clear();
                    self.shared.reap();
                    let now = Instant::now();
                    while self.refused.front().is_some_and(|(until, _)| *until <= now) {
                        self.refused.pop_front();
                    }
                    if connects {
                        self.accept();
                    }
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn accept(&mut self) {
        match self.socket.listener().accept() {
            Ok((stream, _)) => {
                self.fails = false;
                sys::receive_only_sent_descriptors(&stream);
                if !self.shared.has_room() {
                    return self.refuse(stream);
                }
                let id = self.next_id;
                self.next_id = self.next_id.wrapping_add(1);
                if let Err((error, stream)) = self.shared.open(id, stream) {
                    log::error!("no thread for a client of the API: {error}");
                    self.refuse(stream);
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => self.failed(&error),
            },
        }
    }

    /// Answers without waiting for a request.
    fn refuse(&mut self, stream: UnixStream) {
        let refusal = Refusal::new(503, "there are too many connections: try again");
        let response = refuse(&*self.shared.service, &refusal);
        let _ = sys::send(&stream, &encode(&response, false, After::Close));
        let _ = stream.shutdown(Shutdown::Write);
        // Closed at once, it could not be read by a client that writes first.
        self.refused
            .push_back((Instant::now() + self.shared.limits.linger, stream));
        if self.refused.len() > MAX_REFUSED {
            self.refused.pop_front();
        }
    }

    /// Waits for better times: a connection that cannot be accepted stays in the queue.
    fn failed(&mut self, error: &io::Error) {
        if !self.fails {
            log::error!("cannot accept a client of the API: {error}");
            self.fails = true;
        }
        self.shared.evict();
        let deadline = Some(Instant::now() + PAUSE);
        let _ = sys::wait([(self.shared.stop.as_fd(), For::Input)], deadline);
    }
}
