/* A card that is not there: what torch asks the CUDA runtime and the driver when it differentiates fake tensors on a GPU.

   Loaded before all other libraries (LD_PRELOAD) and named as the driver is (libcuda.so.1), it says that there is one card, an H100 that
   nobody uses yet. Whatever else is asked goes to the runtime itself, and ends in its error. */

static int current = 0;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }

int cudaGetDevice(int *device) { *device = current; return 0; }

int cudaSetDevice(int device) { current = device; return 0; }

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { (void)device; *flags = 0; *active = 0; return 0; }

/* The major version of what it can do, which lies at one place in CUDA 12 and 13. Torch has filled the rest with zeros. */
int cudaGetDeviceProperties(void *properties, int device) { (void)device; ((int *)properties)[90] = 9; return 0; }

int cudaGetDeviceProperties_v2(void *properties, int device) { return cudaGetDeviceProperties(properties, device); }
