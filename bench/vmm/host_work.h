// DeviceWork of the host driver: functions on the streams' threads.
#pragma once

#include "bench/vmm/device_work.h"

namespace weir::bench {

Result<std::unique_ptr<DeviceWork>> MakeHostWork(Driver& driver);

}  // namespace weir::bench
