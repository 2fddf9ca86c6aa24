# The CUDA kernels (kernels/cuda/): whether they are built, for which GPUs, with what flags.
#
#   WEIR_CUDA_KERNELS        AUTO (default): built where nvcc and FlashInfer's headers are, never in
#                            sanitizer and fuzzing builds. ON: an error where they cannot be. OFF.
#   WEIR_CUDA_ARCHITECTURES  compute capabilities as in "80;90a;100;120"; FA3 kernels need 90a
#
# After this file WEIR_BUILD_CUDA_KERNELS is ON or OFF, and with ON there are
#   weir_flashinfer          include paths of FlashInfer, for CUDA sources
#   weir_cuda_kernels(...)   how an object library of .cu files is made
# Included at the top level: CUDA must be enabled in the folder above all that use it.
set(WEIR_CUDA_KERNELS AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set(WEIR_CUDA_ARCHITECTURES 90a CACHE STRING "GPUs the CUDA kernels are built for")
set(WEIR_BUILD_CUDA_KERNELS OFF)

# Sets `reason` to why the kernels cannot be built, or to nothing.
function(weir_find_cuda_kernels reason)
  set(${reason} "" PARENT_SCOPE)
  if(WEIR_SANITIZE OR WEIR_BUILD_FUZZERS)
    set(${reason} "sanitizer and fuzzing builds leave them out" PARENT_SCOPE)
    return()
  endif()
  find_program(WEIR_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
  if(NOT WEIR_NVCC)
    set(${reason} "nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${PROJECT_SOURCE_DIR}/tools/get_flashinfer.sh
    OUTPUT_VARIABLE data RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    set(${reason} "tools/get_flashinfer.sh could not fetch FlashInfer's headers" PARENT_SCOPE)
    return()
  endif()
  set(WEIR_FLASHINFER_DATA "${data}" PARENT_SCOPE)
endfunction()

if(NOT WEIR_CUDA_KERNELS STREQUAL OFF)
  weir_find_cuda_kernels(WEIR_NO_CUDA_KERNELS)
  if(NOT WEIR_NO_CUDA_KERNELS)
    set(WEIR_BUILD_CUDA_KERNELS ON)
  elseif(WEIR_CUDA_KERNELS STREQUAL AUTO)
    message(STATUS "CUDA kernels: not built: ${WEIR_NO_CUDA_KERNELS}")
  else()
    message(FATAL_ERROR "CUDA kernels: WEIR_CUDA_KERNELS is ON, but ${WEIR_NO_CUDA_KERNELS}")
  endif()
endif()
if(NOT WEIR_BUILD_CUDA_KERNELS)
  return()
endif()

set(CMAKE_CUDA_COMPILER ${WEIR_NVCC})
if(CMAKE_CXX_COMPILER_LAUNCHER AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
set(CMAKE_CUDA_ARCHITECTURES ${WEIR_CUDA_ARCHITECTURES})
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES APPEND -real)  # machine code only: no PTX to compile later
enable_language(CUDA)
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, sm ${WEIR_CUDA_ARCHITECTURES}")

# Plain -I, not SYSTEM: the CCCL that FlashInfer brings must win over the toolkit's.
add_library(weir_flashinfer INTERFACE)
target_include_directories(weir_flashinfer INTERFACE
  ${WEIR_FLASHINFER_DATA}/cccl/cub ${WEIR_FLASHINFER_DATA}/cccl/libcudacxx/include
  ${WEIR_FLASHINFER_DATA}/cccl/thrust ${WEIR_FLASHINFER_DATA}/include)
add_library(weir_cutlass INTERFACE)
target_include_directories(weir_cutlass INTERFACE
  ${WEIR_FLASHINFER_DATA}/cutlass/include ${WEIR_FLASHINFER_DATA}/cutlass/tools/util/include)
target_link_libraries(weir_cutlass INTERFACE weir_flashinfer)

# One FA3 source takes about 3.5 GiB and 40 s: never two at once.
set_property(GLOBAL APPEND PROPERTY JOB_POOLS weir_fa3=1)

# weir_cuda_kernels(name SOURCES a.cu ... [LINK lib ...] [ARCHITECTURES a ...] [POOL p])
function(weir_cuda_kernels name)
  cmake_parse_arguments(ARG "" "POOL" "SOURCES;LINK;ARCHITECTURES" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_LINK})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  # -std by hand: CMake 3.25 does not know how nvcc 13 spells C++20.
  target_compile_options(${name} PRIVATE -std=c++20 --expt-relaxed-constexpr
    -Xcompiler=-fvisibility=hidden,-fno-omit-frame-pointer -diag-suppress=1444,2908)
  target_compile_definitions(${name} PRIVATE NDEBUG)
  if(ARG_ARCHITECTURES)
    set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${ARG_ARCHITECTURES}")
  endif()
  if(ARG_POOL)
    set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE ${ARG_POOL})
  endif()
endfunction()
