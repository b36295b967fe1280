//! The files of a qcow2 image. An image names the file that it is based on; what is opened is for us to
//! say: plain paths to files and block devices, to be read alone, and only if the operator wants that.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use imago::format::builder::FormatDriverBuilder as _;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess};
use thiserror::Error;

use super::Disk;
use super::header::{Header, HeaderError};
use super::storage::ImageFile;
use crate::virtio::block::backend::{ImageError, Lock, open_file};

/// Images that are based on each other, at most.
const DEEPEST: usize = 10;

/// Why a qcow2 image cannot be used.
#[derive(Debug, Error)]
pub enum ChainError {
    /// Its header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Its tables.
    #[error("its tables are not in order; qemu-img check may say more")]
    Tables(#[source] io::Error),
    /// Clusters that are too small to be read past the page cache.
    #[error(
        "direct=on: its clusters have {cluster} bytes, and its file system reads {unit} at least"
    )]
    Unit {
        /// Bytes of a cluster.
        cluster: u64,
        /// Bytes that are read at least.
        unit: u64,
    },
    /// It is based on another file.
    #[error("it is based on {name:?}; backing_files=on opens that for reading")]
    Based {
        /// How it is named.
        name: String,
    },
    /// The name of the file that it is based on is no path.
    #[error("it is based on {name:?}, which is no path of a file")]
    Name {
        /// How it is named.
        name: String,
    },
    /// The format of the file that it is based on.
    #[error(
        "it is based on {name:?} without saying in which format, and a guest can make a raw image look \
         like any other; qemu-img rebase -u -F raw|qcow2 -b says it"
    )]
    NoFormat {
        /// How it is named.
        name: String,
    },
    /// Another format.
    #[error("it is based on {name:?}, of format {format:?}; raw and qcow2 are supported")]
    Format {
        /// How it is named.
        name: String,
        /// Its format.
        format: String,
    },
    /// Too many files.
    #[error("it is based on more than {DEEPEST} files, or on itself")]
    Depth,
    /// A file that it is based on.
    #[error("it is based on {path}", path = path.display())]
    Base {
        /// Where that is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<ImageError>,
    },
}

/// A file that was opened and locked.
pub struct Opened<'a> {
    pub path: &'a Path,
    /// As it was opened.
    pub file: &'a File,
    /// Past the host's page cache, where that is wanted.
    pub data: File,
    pub size: u64,
    pub writable: bool,
    /// Bytes that are read and written at least.
    pub unit: u64,
}

/// What is the same for all files of a chain.
struct Chain {
    backing_files: bool,
    direct: bool,
    lock: Lock,
    seen: Vec<(u64, u64)>,
}

/// Opens a qcow2 image.
///
/// # Errors
/// It, or what it is based on, cannot be used.
pub fn open(
    opened: Opened<'_>,
    backing_files: bool,
    direct: bool,
    lock: Lock,
) -> Result<Disk, ChainError> {
    let mut chain = Chain {
        backing_files,
        direct,
        lock,
        seen: Vec::new(),
    };
    let (image, header) = chain.qcow2(opened)?;
    let Header {
        version,
        cluster,
        backing,
        ..
    } = header;
    Ok(Disk::new(image, version, cluster, backing.is_some()))
}

impl Chain {
    fn qcow2(
        &mut self,
        opened: Opened<'_>,
    ) -> Result<(FormatAccess<ImageFile>, Header), ChainError> {
        let Opened {
            path,
            file,
            data,
            size,
            writable,
            unit,
        } = opened;
        let metadata = file.metadata().map_err(HeaderError::Read)?;
        let identity = (metadata.dev(), metadata.ino());
        if self.seen.len() >= DEEPEST || self.seen.contains(&identity) {
            return Err(ChainError::Depth);
        }
        self.seen.push(identity);
        let header = Header::read(file, size, writable)?;
        let cluster = header.cluster;
        if cluster < unit {
            return Err(ChainError::Unit { cluster, unit });
        }
        let backing = header.backing.as_ref();
        let backing = backing.map(|(name, format)| self.base(path, name, format.as_deref()));
        let backing = backing.transpose()?;
        let blocks = header.refcount_blocks(file, size)?;
        let tables = file.try_clone().map_err(HeaderError::Read)?;
        let storage = ImageFile::qcow2(tables, (data, unit), &header, blocks);
        let image = super::caught(|| {
            Qcow2::<ImageFile>::builder(storage)
                .backing(backing)
                .data_file(None)
                .write(writable)
                .open(DenyImplicitOpenGate::default())
        });
        let image = image.map_err(ChainError::Tables)?;
        Ok((FormatAccess::new(image), header))
    }

    /// Opens what an image is based on.
    fn base(
        &mut self,
        image: &Path,
        name: &str,
        format: Option<&str>,
    ) -> Result<FormatAccess<ImageFile>, ChainError> {
        let name = name.to_owned();
        if !self.backing_files {
            return Err(ChainError::Based { name });
        }
        // Something like "nbd://" or "json:{}".
        let before = name.split_once(':').map(|(before, _)| before);
        if before.is_some_and(|before| !before.contains('/')) || name.contains('\0') {
            return Err(ChainError::Name { name });
        }
        let is_qcow2 = match format {
            Some("qcow2") => true,
            Some("raw") => false,
            Some(format) => {
                let format = format.to_owned();
                return Err(ChainError::Format { name, format });
            }
            None => return Err(ChainError::NoFormat { name }),
        };
        let path = image.parent().unwrap_or(Path::new("")).join(&name);
        let opened = self.open_base(&path, is_qcow2);
        opened.map_err(|source| ChainError::Base {
            path,
            source: Box::new(source),
        })
    }

    fn open_base(
        &mut self,
        path: &Path,
        is_qcow2: bool,
    ) -> Result<FormatAccess<ImageFile>, ImageError> {
        let opened = open_file(path, true, self.direct, self.lock)?;
        let unit = opened.blocks.offset;
        let (file, data, size) = (opened.file, opened.data, opened.size);
        if !is_qcow2 {
            let storage = ImageFile::plain(file, data, unit);
            let image = super::caught(|| Raw::open_image(storage, false));
            let image = image.map_err(|source| ImageError::Qcow2(ChainError::Tables(source)))?;
            return Ok(FormatAccess::new(image));
        }
        let opened = Opened {
            path,
            file: &file,
            data,
            size,
            writable: false,
            unit,
        };
        let (image, _) = self.qcow2(opened).map_err(ImageError::Qcow2)?;
        Ok(image)
    }
}
