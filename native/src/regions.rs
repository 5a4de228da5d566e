//! The registered regions of shared memory, from which requests are read and into which outputs go.
//!
//! The server maps no memory. A client can truncate its file at any moment, and SIGBUS would then end a process with a
//! mapping. Reads and writes of a file return an error instead.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use crate::inference::Placement;
use crate::region_error::{Problem, RegionError};
use crate::sync::RwLock;

/// A registered part of a shared memory object.
#[derive(Debug)]
pub struct Region {
    name: String,
    file: File,
    offset: u64,
    byte_size: u64,
    /// Locked during a write, so that none follows `unregister`.
    is_registered: RwLock<bool>,
}

impl Region {
    pub fn new(name: String, file: File, offset: u64, byte_size: u64) -> Self {
        Self { name, file, offset, byte_size, is_registered: RwLock::new(true) }
    }

    /// Waits for writes in progress; later ones fail. Requests that are queued can still be read.
    pub fn unregister(&self) {
        *self.is_registered.write().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// The regions by user and name.
#[derive(Clone, Debug, Default)]
pub struct Regions(HashMap<u32, HashMap<String, Arc<Region>>>);

impl Regions {
    pub fn insert(&mut self, owner: u32, region: Arc<Region>) {
        self.0.entry(owner).or_default().insert(region.name.clone(), region);
    }

    pub fn remove(&mut self, owner: u32, name: &str) -> Option<Arc<Region>> {
        self.0.get_mut(&owner)?.remove(name)
    }

    /// The first `len` bytes at `placement`; `None` unless they are within a region of `owner` and its object.
    pub fn find(&self, owner: u32, tensor: &'static str, placement: &Placement, len: usize) -> Option<RegionSlice> {
        let region = self.0.get(&owner)?.get(&placement.region)?;
        let end = placement.offset.checked_add(placement.byte_size)?;
        if end > region.byte_size || placement.byte_size < len as u64 {
            return None;
        }
        let slice = RegionSlice { tensor, region: region.clone(), start: region.offset + placement.offset, len };
        slice.is_within_object().ok()?.then_some(slice)
    }
}

/// The user whose regions a client uses: its own over a Unix domain socket, the server's over loopback. `None` for a client
/// elsewhere. `peer` is the client as `Socket::peer` writes it.
pub fn region_owner(peer: &str, server_user: u32) -> Option<u32> {
    if let Some(user) = peer.strip_prefix("unix:uid=") {
        return user.parse().ok();
    }
    let (_, address) = peer.split_once(':')?;
    let address: SocketAddr = address.parse().ok()?;
    address.ip().to_canonical().is_loopback().then_some(server_user)
}

/// The bytes of one tensor in a region. It keeps the file open.
#[derive(Debug)]
pub struct RegionSlice {
    tensor: &'static str,
    region: Arc<Region>,
    /// In the object.
    start: u64,
    len: usize,
}

impl RegionSlice {
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Reads `out.len()` bytes from `offset` on, which are within the slice.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), RegionError> {
        let mut filled = 0;
        while filled < out.len() {
            match self.region.file.read_at(&mut out[filled..], self.start + (offset + filled) as u64) {
                Ok(0) => return Err(self.error(Problem::TooShort { available: offset + filled, expected: self.len })),
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.os_error(&error)),
            }
        }
        Ok(())
    }

    /// Writes `data`, as many bytes as the slice has.
    pub fn write(&self, data: &[u8]) -> Result<(), RegionError> {
        let is_registered = self.region.is_registered.read().unwrap_or_else(PoisonError::into_inner);
        if !*is_registered {
            return Err(self.error(Problem::Unregistered));
        }
        // A write beyond the end would make the object longer.
        if !self.is_within_object().map_err(|error| self.os_error(&error))? {
            return Err(self.error(Problem::Truncated));
        }
        match self.region.file.write_at(data, self.start) {
            Ok(n) if n == data.len() => Ok(()),
            Ok(_) => Err(self.error(Problem::NotWritten)),
            Err(error) => Err(self.os_error(&error)),
        }
    }

    fn is_within_object(&self) -> Result<bool, Error> {
        Ok(self.start + self.len as u64 <= self.region.file.metadata()?.len())
    }

    fn error(&self, problem: Problem) -> RegionError {
        RegionError { tensor: self.tensor, region: self.region.name.clone(), problem }
    }

    fn os_error(&self, error: &Error) -> RegionError {
        self.error(Problem::Os(error.raw_os_error().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ME: u32 = 1000;

    fn object(name: &str, content: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("digitserve-regions-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        fs::remove_file(path).unwrap();
        file
    }

    fn regions(name: &str) -> (Regions, File) {
        let file = object(name, &(0..100).collect::<Vec<u8>>());
        let mut regions = Regions::default();
        regions.insert(ME, Arc::new(Region::new("r".into(), file.try_clone().unwrap(), 10, 50)));
        (regions, file)
    }

    fn placement(offset: u64, byte_size: u64) -> Placement {
        Placement { region: "r".into(), offset, byte_size }
    }

    #[test]
    fn a_tensor_is_found_within_a_region_of_its_user() {
        let (regions, file) = regions("found");
        let slice = regions.find(ME, "pixels", &placement(45, 5), 5).unwrap();
        let mut out = [0; 3];
        slice.read(2, &mut out).unwrap();
        assert_eq!(out, [57, 58, 59]);
        for (offset, byte_size, len) in [(46, 5, 5), (0, 51, 1), (u64::MAX, 5, 5), (0, 4, 5)] {
            assert!(regions.find(ME, "pixels", &placement(offset, byte_size), len).is_none());
        }
        assert!(regions.find(ME + 1, "pixels", &placement(0, 5), 5).is_none());
        file.set_len(59).unwrap();
        assert!(regions.find(ME, "pixels", &placement(45, 5), 5).is_none());
    }

    #[test]
    fn a_truncated_object_is_an_error_and_grows_no_more() {
        let (regions, file) = regions("truncated");
        let slice = regions.find(ME, "digit", &placement(40, 10), 8).unwrap();
        file.set_len(53).unwrap();
        let problem = Problem::TooShort { available: 3, expected: 8 };
        assert_eq!(slice.read(0, &mut [0; 8]).unwrap_err().problem, problem);
        assert_eq!(slice.write(&[1; 8]).unwrap_err().problem, Problem::Truncated);
        assert_eq!(file.metadata().unwrap().len(), 53);
    }

    #[test]
    fn an_unregistered_region_is_read_and_not_written() {
        let (mut regions, file) = regions("unregistered");
        let slice = regions.find(ME, "digit", &placement(0, 4), 4).unwrap();
        slice.write(&[7; 4]).unwrap();
        regions.remove(ME, "r").unwrap().unregister();
        let error = slice.write(&[8; 4]).unwrap_err();
        assert_eq!(error, RegionError { tensor: "digit", region: "r".into(), problem: Problem::Unregistered });
        let mut out = [0; 4];
        slice.read(0, &mut out).unwrap();
        file.read_at(&mut out, 10).unwrap();
        assert_eq!(out, [7; 4]);
        assert!(regions.remove(ME, "r").is_none());
    }

    #[test]
    fn only_clients_on_this_machine_have_regions() {
        for (peer, owner) in [
            ("unix:uid=12345", Some(12345)),
            ("ipv4:127.0.0.1:5", Some(ME)),
            ("ipv6:[::1]:5", Some(ME)),
            ("ipv6:[::ffff:127.0.0.1]:5", Some(ME)),
            ("ipv4:10.0.0.1:5", None),
            ("ipv6:[fe80::1]:5", None),
            ("unix:", None),
            ("", None),
        ] {
            assert_eq!(region_owner(peer, ME), owner, "{peer}");
        }
    }
}
