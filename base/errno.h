// Linux errno numbers as a value type, so that layers without operating-system headers can speak them.
// Source: linux/include/uapi/asm-generic/errno-base.h and errno.h (x86-64 values).
#pragma once

#include <cstdint>

namespace sluice {

enum class [[nodiscard]] Errno : uint16_t {
  kOk = 0,
  kEPERM = 1,
  kENOENT = 2,
  kEINTR = 4,
  kEIO = 5,
  kENXIO = 6,
  kE2BIG = 7,
  kEBADF = 9,
  kEAGAIN = 11,
  kENOMEM = 12,
  kEACCES = 13,
  kEFAULT = 14,
  kEBUSY = 16,
  kEEXIST = 17,
  kENODEV = 19,
  kEINVAL = 22,
  kENFILE = 23,
  kEMFILE = 24,
  kENOTTY = 25,
  kENOSPC = 28,
  kEPIPE = 32,
  kEDOM = 33,
  kERANGE = 34,
  kENOSYS = 38,
  kENODATA = 61,
  kENONET = 64,
  kEPROTO = 71,
  kENOTSOCK = 88,
  kEDESTADDRREQ = 89,
  kEMSGSIZE = 90,
  kEPROTOTYPE = 91,
  kENOPROTOOPT = 92,
  kEPROTONOSUPPORT = 93,
  kESOCKTNOSUPPORT = 94,
  kEOPNOTSUPP = 95,
  kEPFNOSUPPORT = 96,
  kEAFNOSUPPORT = 97,
  kEADDRINUSE = 98,
  kEADDRNOTAVAIL = 99,
  kENETDOWN = 100,
  kENETUNREACH = 101,
  kECONNABORTED = 103,
  kECONNRESET = 104,
  kENOBUFS = 105,
  kEISCONN = 106,
  kENOTCONN = 107,
  kETIMEDOUT = 110,
  kECONNREFUSED = 111,
  kEHOSTDOWN = 112,
  kEHOSTUNREACH = 113,
  kEALREADY = 114,
  kEINPROGRESS = 115,
  kESTALE = 116,
};

constexpr int ToInt(Errno e) { return static_cast<int>(e); }

}  // namespace sluice
