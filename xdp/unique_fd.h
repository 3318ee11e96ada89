// The one class of the project, under the name that xdp and dataplane include.
#pragma once

#include "base/unique_fd.h"
