//! Every schedule of a write and an unregistration.

use super::*;

use loom::thread;

/// An object, and a slice of a region of it. loom searches the schedules of locks alone, so the object is a real file.
fn slice(region: &Arc<Region>) -> RegionSlice {
    RegionSlice { tensor: "digit", region: region.clone(), start: 0, len: 1 }
}

/// A thread writes an output while its client unregisters the region: no byte changes after that.
pub fn nothing_is_written_after_unregister() {
    let path = std::env::temp_dir().join(format!("digitserve-search-{}", std::process::id()));
    std::fs::write(&path, [0]).expect("the folder is writable");
    let file = File::options().read(true).write(true).open(path).expect("it was written");
    let region = Arc::new(Region::new("r".into(), file.try_clone().expect("descriptors are left"), 0, 1));
    let writer = thread::spawn({
        let slice = slice(&region);
        move || slice.write(&[1]).is_ok()
    });
    region.unregister();
    let read = || {
        let mut byte = [0];
        file.read_at(&mut byte, 0).expect("it has a byte");
        byte[0] == 1
    };
    let before = read();
    let is_written = writer.join().expect("it does not panic");
    assert_eq!((before, read()), (is_written, is_written), "written after the region was unregistered");
}
