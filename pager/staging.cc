#include "pager/staging.h"

#include "vmm/types.h"

namespace weir {

Staging::~Staging() {
  if (mapped_) (void)driver_->Unmap(base_);
  if (alloc_.valid()) (void)driver_->Release(alloc_);
  if (base_ != 0) (void)driver_->Free(base_);
}

Status Staging::Make(Driver& driver, uint64_t bytes) {
  if (driver.properties().virtual_time) {
    return Unsupported("driver " + driver.properties().name +
                       " simulates time and memory; a file cannot be read into it");
  }
  driver_ = &driver;
  const uint64_t granularity = driver.properties().granularity_bytes;
  bytes_ = AlignUp(bytes, granularity);
  base_ = WEIR_TRY(driver.Reserve(bytes_, granularity));
  alloc_ = WEIR_TRY(driver.Create(Tier::kHost, bytes_));
  WEIR_TRY(driver.Map(base_, alloc_));
  mapped_ = true;
  return driver.SetAccess(base_, bytes_, Access::kReadWrite);
}

}  // namespace weir
