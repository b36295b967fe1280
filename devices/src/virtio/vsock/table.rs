//! Where connections are kept.

use std::collections::HashMap;

use super::connection::Connection;

/// The most connections, those that are not accepted yet among them.
pub const MOST_CONNECTIONS: usize = 1023;

/// The first of the ports that programs of the host have; the last is the one before twice that.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Connections by their places, which stay the same while they are there.
#[derive(Default)]
pub struct Table {
    places: Vec<Place>,
    free: Vec<u16>,
    /// Places by the ports of guest and host, of those that have ports.
    by_ports: HashMap<(u32, u32), u16>,
    next_host_port: u32,
}

#[derive(Default)]
struct Place {
    connection: Option<Connection>,
    /// Goes up whenever another connection comes here: what was heard of an earlier one is not meant
    /// for it.
    generation: u32,
}

/// A place, and which of its connections is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub place: u16,
    pub generation: u32,
}

impl Key {
    /// As a number of 48 bits.
    pub fn to_number(self) -> u64 {
        u64::from(self.generation) << 16 | u64::from(self.place)
    }

    /// What [`Key::to_number`] made.
    pub fn from_number(number: u64) -> Self {
        Self {
            place: number as u16,
            generation: (number >> 16) as u32,
        }
    }
}

impl Table {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        self.len() >= MOST_CONNECTIONS
    }

    /// Adds a connection, which has ports if it has a guest's.
    ///
    /// # Returns
    /// Where it is; nothing if there is no room.
    pub fn add(&mut self, connection: Connection) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push(Place::default());
                // There are at most 1023.
                (self.places.len() - 1) as u16
            }
        };
        let place = self.places.get_mut(usize::from(index))?;
        place.generation = place.generation.wrapping_add(1);
        let generation = place.generation;
        if !connection.is_half_open() {
            let ports = (connection.guest_port, connection.host_port);
            self.by_ports.insert(ports, index);
        }
        place.connection = Some(connection);
        Some(Key {
            place: index,
            generation,
        })
    }

    /// Chooses a port of the host for a guest's port, and makes a connection known by them.
    pub fn give_ports(&mut self, place: u16, guest_port: u32) -> u32 {
        let host_port = loop {
            let port = FIRST_HOST_PORT | self.next_host_port & (FIRST_HOST_PORT - 1);
            self.next_host_port = self.next_host_port.wrapping_add(1);
            // Ends soon: there are more ports than connections.
            if !self.by_ports.contains_key(&(guest_port, port)) {
                break port;
            }
        };
        self.by_ports.insert((guest_port, host_port), place);
        host_port
    }

    /// The connection at a place.
    pub fn get(&mut self, place: u16) -> Option<&mut Connection> {
        self.places.get_mut(usize::from(place))?.connection.as_mut()
    }

    /// Whether a key is of the connection that is there.
    pub fn is_there(&self, key: Key) -> bool {
        let place = self.places.get(usize::from(key.place));
        place.is_some_and(|place| place.generation == key.generation && place.connection.is_some())
    }

    /// Where the connection with these ports is.
    pub fn find(&self, guest_port: u32, host_port: u32) -> Option<u16> {
        self.by_ports.get(&(guest_port, host_port)).copied()
    }

    /// Takes a connection out.
    pub fn remove(&mut self, place: u16) -> Option<Connection> {
        let connection = self.places.get_mut(usize::from(place))?.connection.take()?;
        let ports = (connection.guest_port, connection.host_port);
        // Those without ports are not known by any.
        if self.by_ports.get(&ports) == Some(&place) {
            self.by_ports.remove(&ports);
        }
        self.free.push(place);
        Some(connection)
    }

    /// All that are there, with their places.
    pub fn all(&mut self) -> impl Iterator<Item = (u16, &mut Connection)> {
        let places = (0..).zip(&mut self.places);
        places.filter_map(|(index, place)| Some((index, place.connection.as_mut()?)))
    }

    /// How many are known by their ports.
    #[cfg(test)]
    pub fn known_ports(&self) -> usize {
        self.by_ports.len()
    }
}
