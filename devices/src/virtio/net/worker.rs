//! A pair of queues, both served by one thread; that of the first pair serves the control queue too.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;

use vmm_sys_util::epoll::EventSet;

use super::control::Control;
use super::port::Port;
use super::receive::{Next, Receiver};
use super::transmit::Transmitter;
use crate::virtio::{Fault, Handler, Token};

/// The driver has made buffers available.
const BUFFERS: Token = 0;
/// The driver has frames.
const FRAMES: Token = 1;
/// The driver has a command.
const COMMAND: Token = 2;
/// The host's interface has what was waited for.
const HOST: Token = 3;
/// The time of a frame to the guest has come.
const MAY_RECEIVE: Token = 4;
/// The time of a frame from the guest has come.
const MAY_TRANSMIT: Token = 5;

/// Serves a pair of queues, as far as the driver uses them.
pub struct NetHandler {
    /// The host's queue.
    pub port: Arc<Port>,
    /// Frames to the guest.
    pub receiver: Option<Receiver>,
    /// Frames from the guest.
    pub transmitter: Option<Transmitter>,
    /// The control queue.
    pub control: Option<Control>,
    /// The driver is not asked to tell of frames.
    pub lingers: bool,
}

impl NetHandler {
    fn receive(&mut self) -> Result<(), Fault> {
        let Some(receiver) = &mut self.receiver else {
            return Ok(self.port.want(EventSet::IN, false)?);
        };
        let next = receiver.serve(&self.port)?;
        match next {
            Next::Again => {
                // A full counter is as good.
                let _ = receiver.queue().kick().write(1);
            }
            // What is attached again in this moment is to be waited for.
            Next::Nothing => return Ok(()),
            Next::Driver | Next::Host | Next::Limit | Next::Look => {}
        }
        Ok(self.port.want(EventSet::IN, next == Next::Host)?)
    }

    fn transmit(&mut self) -> Result<(), Fault> {
        let Some(transmitter) = &mut self.transmitter else {
            return Ok(self.port.want(EventSet::OUT, false)?);
        };
        let next = transmitter.serve(&self.port)?;
        self.lingers = next == Next::Look;
        if next == Next::Again {
            let _ = transmitter.queue().kick().write(1);
        }
        Ok(self.port.want(EventSet::OUT, next == Next::Host)?)
    }
}

impl Handler for NetHandler {
    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let mut descriptors = vec![(self.port.event(), HOST)];
        if let Some(receiver) = &self.receiver {
            descriptors.push((receiver.queue().kick().as_raw_fd(), BUFFERS));
            descriptors.extend(receiver.limit().map(|limit| (limit, MAY_RECEIVE)));
        }
        if let Some(transmitter) = &self.transmitter {
            descriptors.push((transmitter.queue().kick().as_raw_fd(), FRAMES));
            descriptors.extend(transmitter.limit().map(|limit| (limit, MAY_TRANSMIT)));
        }
        if let Some(control) = &self.control {
            descriptors.push((control.queue().kick().as_raw_fd(), COMMAND));
        }
        descriptors
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        // Nothing to read of an event is as good.
        match token {
            BUFFERS => {
                let _ = self
                    .receiver
                    .as_ref()
                    .map(|receiver| receiver.queue().kick().read());
                self.receive()
            }
            FRAMES => {
                let _ = self
                    .transmitter
                    .as_ref()
                    .map(|transmitter| transmitter.queue().kick().read());
                self.transmit()
            }
            COMMAND => {
                let Some(control) = &mut self.control else {
                    return Ok(());
                };
                let _ = control.queue().kick().read();
                control.serve()
            }
            MAY_RECEIVE => self.receive(),
            MAY_TRANSMIT => self.transmit(),
            _ => {
                let wanted = self.port.wanted();
                if wanted.contains(EventSet::IN) {
                    self.receive()?;
                }
                if wanted.contains(EventSet::OUT) {
                    self.transmit()?;
                }
                Ok(())
            }
        }
    }

    fn lingers(&self) -> bool {
        self.lingers
    }

    fn look_again(&mut self) -> Result<(), Fault> {
        // Where the driver has to share this CPU it makes more frames now than one at a time.
        thread::yield_now();
        self.transmit()
    }
}
