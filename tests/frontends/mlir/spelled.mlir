"builtin.module"() ({
  "func.func"() <{function_type = (!torch.vtensor<[1,?],si64>) -> !torch.vtensor<[1,?,32],f32>, sym_name = "main"}> ({
  ^bb0(%arg0: !torch.vtensor<[1,?],si64>):
    %0 = "torch.vtensor.literal"() <{value = dense<0.000000e+00> : tensor<f32>}> : () -> !torch.vtensor<[],f32>
    %1 = "torch.vtensor.literal"() <{value = dense<0xFF800000> : tensor<f32>}> : () -> !torch.vtensor<[],f32>
    %2 = "torch.vtensor.literal"() <{value = dense<true> : tensor<i1>}> : () -> !torch.vtensor<[],i1>
    %3 = "torch.constant.int"() <{value = 6 : i64}> : () -> !torch.int
    %4 = "torch.constant.float"() <{value = 1.000000e+00 : f64}> : () -> !torch.float
    %5 = "torch.constant.int"() <{value = 7 : i64}> : () -> !torch.int
    %6 = "torch.constant.int"() <{value = 32 : i64}> : () -> !torch.int
    %7 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_32_8_torch.float32_1> : tensor<32x8xf32>}> : () -> !torch.vtensor<[32,8],f32>
    %8 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_torch.float32_4> : tensor<8xf32>}> : () -> !torch.vtensor<[8],f32>
    %9 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_16_torch.float32> : tensor<8x16xf32>}> : () -> !torch.vtensor<[8,16],f32>
    %10 = "torch.constant.int"() <{value = 16 : i64}> : () -> !torch.int
    %11 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_16_8_torch.float32> : tensor<16x8xf32>}> : () -> !torch.vtensor<[16,8],f32>
    %12 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_torch.float32_3> : tensor<8xf32>}> : () -> !torch.vtensor<[8],f32>
    %13 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_torch.float32_2> : tensor<8xf32>}> : () -> !torch.vtensor<[8],f32>
    %14 = "torch.constant.float"() <{value = 0xFFF0000000000000 : f64}> : () -> !torch.float
    %15 = "torch.constant.int"() <{value = -2 : i64}> : () -> !torch.int
    %16 = "torch.constant.int"() <{value = 11 : i64}> : () -> !torch.int
    %17 = "torch.constant.float"() <{value = 0.70710678118654757 : f64}> : () -> !torch.float
    %18 = "torch.constant.int"() <{value = 4 : i64}> : () -> !torch.int
    %19 = "torch.constant.int"() <{value = 3 : i64}> : () -> !torch.int
    %20 = "torch.constant.int"() <{value = 24 : i64}> : () -> !torch.int
    %21 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_24_torch.float32> : tensor<24xf32>}> : () -> !torch.vtensor<[24],f32>
    %22 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_24_8_torch.float32> : tensor<24x8xf32>}> : () -> !torch.vtensor<[24,8],f32>
    %23 = "torch.constant.int"() <{value = 8 : i64}> : () -> !torch.int
    %24 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_torch.float32_1> : tensor<8xf32>}> : () -> !torch.vtensor<[8],f32>
    %25 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_8_torch.float32> : tensor<8xf32>}> : () -> !torch.vtensor<[8],f32>
    %26 = "torch.constant.float"() <{value = 1.000000e-05 : f64}> : () -> !torch.float
    %27 = "torch.constant.bool"() <{value = true}> : () -> !torch.bool
    %28 = "torch.constant.int"() <{value = 2 : i64}> : () -> !torch.int
    %29 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_64_8_torch.float32> : tensor<64x8xf32>}> : () -> !torch.vtensor<[64,8],f32>
    %30 = "torch.constant.none"() : () -> !torch.none
    %31 = "torch.constant.int"() <{value = 0 : i64}> : () -> !torch.int
    %32 = "torch.constant.bool"() <{value = false}> : () -> !torch.bool
    %33 = "torch.constant.int"() <{value = -1 : i64}> : () -> !torch.int
    %34 = "torch.vtensor.literal"() <{value = dense_resource<torch_tensor_32_8_torch.float32> : tensor<32x8xf32>}> : () -> !torch.vtensor<[32,8],f32>
    %35 = "torch.constant.int"() <{value = 1 : i64}> : () -> !torch.int
    %36 = "torch.aten.size.int"(%arg0, %35) : (!torch.vtensor<[1,?],si64>, !torch.int) -> !torch.int
    %37 = "torch.aten.embedding"(%34, %arg0, %33, %32, %32) : (!torch.vtensor<[32,8],f32>, !torch.vtensor<[1,?],si64>, !torch.int, !torch.bool, !torch.bool) -> !torch.vtensor<[1,?,8],f32>
    %38 = "torch.constant.device"() <{value = "cpu"}> : () -> !torch.Device
    %39 = "torch.aten.arange.start_step"(%31, %36, %35, %30, %31, %38, %32) : (!torch.int, !torch.int, !torch.int, !torch.none, !torch.int, !torch.Device, !torch.bool) -> !torch.vtensor<[?],si64>
    %40 = "torch.aten.embedding"(%29, %39, %33, %32, %32) : (!torch.vtensor<[64,8],f32>, !torch.vtensor<[?],si64>, !torch.int, !torch.bool, !torch.bool) -> !torch.vtensor<[?,8],f32>
    %41 = "torch.aten.add.Tensor"(%37, %40, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[?,8],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %42 = "torch.prim.ListConstruct"(%28) : (!torch.int) -> !torch.list<int>
    %43 = "torch.aten.to.dtype"(%41, %5, %32, %32, %30) : (!torch.vtensor<[1,?,8],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,8],f64>
    %44 = "torch.aten.sum.dim_IntList"(%43, %42, %27, %30) : (!torch.vtensor<[1,?,8],f64>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f64>
    %45 = "torch.aten.div.Scalar"(%44, %23) : (!torch.vtensor<[1,?,1],f64>, !torch.int) -> !torch.vtensor<[1,?,1],f64>
    %46 = "torch.aten.sub.Tensor"(%43, %45, %4) : (!torch.vtensor<[1,?,8],f64>, !torch.vtensor<[1,?,1],f64>, !torch.float) -> !torch.vtensor<[1,?,8],f64>
    %47 = "torch.aten.mul.Tensor"(%46, %46) : (!torch.vtensor<[1,?,8],f64>, !torch.vtensor<[1,?,8],f64>) -> !torch.vtensor<[1,?,8],f64>
    %48 = "torch.aten.sum.dim_IntList"(%47, %42, %27, %30) : (!torch.vtensor<[1,?,8],f64>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f64>
    %49 = "torch.aten.div.Scalar"(%48, %23) : (!torch.vtensor<[1,?,1],f64>, !torch.int) -> !torch.vtensor<[1,?,1],f64>
    %50 = "torch.aten.to.dtype"(%49, %3, %32, %32, %30) : (!torch.vtensor<[1,?,1],f64>, !torch.int, !torch.bool, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f32>
    %51 = "torch.aten.sum.dim_IntList"(%41, %42, %27, %30) : (!torch.vtensor<[1,?,8],f32>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f32>
    %52 = "torch.aten.div.Scalar"(%51, %23) : (!torch.vtensor<[1,?,1],f32>, !torch.int) -> !torch.vtensor<[1,?,1],f32>
    %53 = "torch.aten.add.Scalar"(%50, %26, %35) : (!torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,1],f32>
    %54 = "torch.aten.rsqrt"(%53) : (!torch.vtensor<[1,?,1],f32>) -> !torch.vtensor<[1,?,1],f32>
    %55 = "torch.aten.sub.Tensor"(%41, %52, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,1],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %56 = "torch.aten.mul.Tensor"(%55, %54) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,1],f32>) -> !torch.vtensor<[1,?,8],f32>
    %57 = "torch.aten.mul.Tensor"(%56, %25) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[8],f32>) -> !torch.vtensor<[1,?,8],f32>
    %58 = "torch.aten.add.Tensor"(%57, %24, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[8],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %59 = "torch.prim.ListConstruct"(%36, %23) : (!torch.int, !torch.int) -> !torch.list<int>
    %60 = "torch.aten.view"(%58, %59) : (!torch.vtensor<[1,?,8],f32>, !torch.list<int>) -> !torch.vtensor<[?,8],f32>
    %61 = "torch.prim.ListConstruct"(%35, %31) : (!torch.int, !torch.int) -> !torch.list<int>
    %62 = "torch.aten.permute"(%22, %61) : (!torch.vtensor<[24,8],f32>, !torch.list<int>) -> !torch.vtensor<[8,24],f32>
    %63 = "torch.aten.mm"(%60, %62) : (!torch.vtensor<[?,8],f32>, !torch.vtensor<[8,24],f32>) -> !torch.vtensor<[?,24],f32>
    %64 = "torch.aten.mul.Scalar"(%63, %35) : (!torch.vtensor<[?,24],f32>, !torch.int) -> !torch.vtensor<[?,24],f32>
    %65 = "torch.aten.mul.Scalar"(%21, %35) : (!torch.vtensor<[24],f32>, !torch.int) -> !torch.vtensor<[24],f32>
    %66 = "torch.aten.add.Tensor"(%64, %65, %35) : (!torch.vtensor<[?,24],f32>, !torch.vtensor<[24],f32>, !torch.int) -> !torch.vtensor<[?,24],f32>
    %67 = "torch.prim.ListConstruct"(%35, %36, %20) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %68 = "torch.aten.view"(%66, %67) : (!torch.vtensor<[?,24],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,24],f32>
    %69 = "torch.prim.ListConstruct"(%35, %36, %19, %28, %18) : (!torch.int, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %70 = "torch.aten.view"(%68, %69) : (!torch.vtensor<[1,?,24],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,3,2,4],f32>
    %71 = "torch.prim.ListConstruct"(%28, %31, %19, %35, %18) : (!torch.int, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %72 = "torch.aten.permute"(%70, %71) : (!torch.vtensor<[1,?,3,2,4],f32>, !torch.list<int>) -> !torch.vtensor<[3,1,2,?,4],f32>
    %73 = "torch.aten.slice.Tensor"(%72, %31, %31, %35, %35) : (!torch.vtensor<[3,1,2,?,4],f32>, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.vtensor<[1,1,2,?,4],f32>
    %74 = "torch.aten.squeeze.dim"(%73, %31) : (!torch.vtensor<[1,1,2,?,4],f32>, !torch.int) -> !torch.vtensor<[1,2,?,4],f32>
    %75 = "torch.aten.slice.Tensor"(%72, %31, %35, %28, %35) : (!torch.vtensor<[3,1,2,?,4],f32>, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.vtensor<[1,1,2,?,4],f32>
    %76 = "torch.aten.squeeze.dim"(%75, %31) : (!torch.vtensor<[1,1,2,?,4],f32>, !torch.int) -> !torch.vtensor<[1,2,?,4],f32>
    %77 = "torch.aten.slice.Tensor"(%72, %31, %28, %19, %35) : (!torch.vtensor<[3,1,2,?,4],f32>, !torch.int, !torch.int, !torch.int, !torch.int) -> !torch.vtensor<[1,1,2,?,4],f32>
    %78 = "torch.aten.squeeze.dim"(%77, %31) : (!torch.vtensor<[1,1,2,?,4],f32>, !torch.int) -> !torch.vtensor<[1,2,?,4],f32>
    %79 = "torch.aten.mul.Scalar"(%74, %17) : (!torch.vtensor<[1,2,?,4],f32>, !torch.float) -> !torch.vtensor<[1,2,?,4],f32>
    %80 = "torch.prim.ListConstruct"(%36, %36) : (!torch.int, !torch.int) -> !torch.list<int>
    %81 = "torch.constant.device"() <{value = "cpu"}> : () -> !torch.Device
    %82 = "torch.aten.empty.memory_format"(%80, %16, %31, %81, %32, %30) : (!torch.list<int>, !torch.int, !torch.int, !torch.Device, !torch.bool, !torch.none) -> !torch.vtensor<[?,?],i1>
    %83 = "torch.aten.size.int"(%82, %31) : (!torch.vtensor<[?,?],i1>, !torch.int) -> !torch.int
    %84 = "torch.aten.size.int"(%82, %35) : (!torch.vtensor<[?,?],i1>, !torch.int) -> !torch.int
    %85 = "torch.prim.ListConstruct"(%83, %84) : (!torch.int, !torch.int) -> !torch.list<int>
    %86 = "torch.aten.broadcast_to"(%2, %85) : (!torch.vtensor<[],i1>, !torch.list<int>) -> !torch.vtensor<[?,?],i1>
    %87 = "torch.constant.device"() <{value = "cpu"}> : () -> !torch.Device
    %88 = "torch.aten.arange.start_step"(%31, %36, %35, %30, %31, %87, %32) : (!torch.int, !torch.int, !torch.int, !torch.none, !torch.int, !torch.Device, !torch.bool) -> !torch.vtensor<[?],si64>
    %89 = "torch.aten.unsqueeze"(%88, %15) : (!torch.vtensor<[?],si64>, !torch.int) -> !torch.vtensor<[1,?],si64>
    %90 = "torch.constant.device"() <{value = "cpu"}> : () -> !torch.Device
    %91 = "torch.aten.arange.start_step"(%31, %36, %35, %30, %31, %90, %32) : (!torch.int, !torch.int, !torch.int, !torch.none, !torch.int, !torch.Device, !torch.bool) -> !torch.vtensor<[?],si64>
    %92 = "torch.aten.unsqueeze"(%91, %33) : (!torch.vtensor<[?],si64>, !torch.int) -> !torch.vtensor<[?,1],si64>
    %93 = "torch.aten.sub.Tensor"(%89, %92, %35) : (!torch.vtensor<[1,?],si64>, !torch.vtensor<[?,1],si64>, !torch.int) -> !torch.vtensor<[?,?],si64>
    %94 = "torch.aten.le.Scalar"(%93, %31) : (!torch.vtensor<[?,?],si64>, !torch.int) -> !torch.vtensor<[?,?],i1>
    %95 = "torch.aten.logical_and"(%94, %86) : (!torch.vtensor<[?,?],i1>, !torch.vtensor<[?,?],i1>) -> !torch.vtensor<[?,?],i1>
    %96 = "torch.aten.where.self"(%95, %0, %1) : (!torch.vtensor<[?,?],i1>, !torch.vtensor<[],f32>, !torch.vtensor<[],f32>) -> !torch.vtensor<[?,?],f32>
    %97 = "torch.prim.ListConstruct"(%31, %35, %19, %28) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %98 = "torch.aten.permute"(%76, %97) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,4,?],f32>
    %99 = "torch.aten.mul.Scalar"(%98, %17) : (!torch.vtensor<[1,2,4,?],f32>, !torch.float) -> !torch.vtensor<[1,2,4,?],f32>
    %100 = "torch.prim.ListConstruct"(%35, %28, %36, %18) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %101 = "torch.aten.broadcast_to"(%79, %100) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,4],f32>
    %102 = "torch.prim.ListConstruct"(%28, %36, %18) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %103 = "torch.aten.view"(%101, %102) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[2,?,4],f32>
    %104 = "torch.prim.ListConstruct"(%35, %28, %18, %36) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %105 = "torch.aten.broadcast_to"(%99, %104) : (!torch.vtensor<[1,2,4,?],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,4,?],f32>
    %106 = "torch.prim.ListConstruct"(%28, %18, %36) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %107 = "torch.aten.view"(%105, %106) : (!torch.vtensor<[1,2,4,?],f32>, !torch.list<int>) -> !torch.vtensor<[2,4,?],f32>
    %108 = "torch.aten.bmm"(%103, %107) : (!torch.vtensor<[2,?,4],f32>, !torch.vtensor<[2,4,?],f32>) -> !torch.vtensor<[2,?,?],f32>
    %109 = "torch.prim.ListConstruct"(%35, %28, %36, %36) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %110 = "torch.aten.view"(%108, %109) : (!torch.vtensor<[2,?,?],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,?],f32>
    %111 = "torch.aten.add.Tensor"(%110, %96, %35) : (!torch.vtensor<[1,2,?,?],f32>, !torch.vtensor<[?,?],f32>, !torch.int) -> !torch.vtensor<[1,2,?,?],f32>
    %112:2 = "torch.aten.max.dim"(%111, %33, %27) : (!torch.vtensor<[1,2,?,?],f32>, !torch.int, !torch.bool) -> (!torch.vtensor<[1,2,?,1],f32>, !torch.vtensor<[1,2,?,1],si64>)
    %113 = "torch.aten.sub.Tensor"(%111, %112#0, %4) : (!torch.vtensor<[1,2,?,?],f32>, !torch.vtensor<[1,2,?,1],f32>, !torch.float) -> !torch.vtensor<[1,2,?,?],f32>
    %114 = "torch.aten.exp"(%113) : (!torch.vtensor<[1,2,?,?],f32>) -> !torch.vtensor<[1,2,?,?],f32>
    %115 = "torch.prim.ListConstruct"(%33) : (!torch.int) -> !torch.list<int>
    %116 = "torch.aten.sum.dim_IntList"(%114, %115, %27, %30) : (!torch.vtensor<[1,2,?,?],f32>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,2,?,1],f32>
    %117 = "torch.aten.div.Tensor"(%114, %116) : (!torch.vtensor<[1,2,?,?],f32>, !torch.vtensor<[1,2,?,1],f32>) -> !torch.vtensor<[1,2,?,?],f32>
    %118 = "torch.aten.eq.Scalar"(%111, %14) : (!torch.vtensor<[1,2,?,?],f32>, !torch.float) -> !torch.vtensor<[1,2,?,?],i1>
    %119 = "torch.aten.all.dim"(%118, %33, %27) : (!torch.vtensor<[1,2,?,?],i1>, !torch.int, !torch.bool) -> !torch.vtensor<[1,2,?,1],i1>
    %120 = "torch.aten.size.int"(%117, %28) : (!torch.vtensor<[1,2,?,?],f32>, !torch.int) -> !torch.int
    %121 = "torch.aten.size.int"(%117, %19) : (!torch.vtensor<[1,2,?,?],f32>, !torch.int) -> !torch.int
    %122 = "torch.prim.ListConstruct"(%35, %28, %120, %121) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %123 = "torch.aten.broadcast_to"(%0, %122) : (!torch.vtensor<[],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,?],f32>
    %124 = "torch.aten.where.self"(%119, %123, %117) : (!torch.vtensor<[1,2,?,1],i1>, !torch.vtensor<[1,2,?,?],f32>, !torch.vtensor<[1,2,?,?],f32>) -> !torch.vtensor<[1,2,?,?],f32>
    %125 = "torch.prim.ListConstruct"(%35, %28, %36, %36) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %126 = "torch.aten.broadcast_to"(%124, %125) : (!torch.vtensor<[1,2,?,?],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,?],f32>
    %127 = "torch.prim.ListConstruct"(%28, %36, %36) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %128 = "torch.aten.view"(%126, %127) : (!torch.vtensor<[1,2,?,?],f32>, !torch.list<int>) -> !torch.vtensor<[2,?,?],f32>
    %129 = "torch.prim.ListConstruct"(%35, %28, %36, %18) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %130 = "torch.aten.broadcast_to"(%78, %129) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,4],f32>
    %131 = "torch.prim.ListConstruct"(%28, %36, %18) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %132 = "torch.aten.view"(%130, %131) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[2,?,4],f32>
    %133 = "torch.aten.bmm"(%128, %132) : (!torch.vtensor<[2,?,?],f32>, !torch.vtensor<[2,?,4],f32>) -> !torch.vtensor<[2,?,4],f32>
    %134 = "torch.prim.ListConstruct"(%35, %28, %36, %18) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %135 = "torch.aten.view"(%133, %134) : (!torch.vtensor<[2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,4],f32>
    %136 = "torch.prim.ListConstruct"(%28, %31, %35, %19) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %137 = "torch.aten.permute"(%135, %136) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[?,1,2,4],f32>
    %138 = "torch.prim.ListConstruct"(%35, %28, %31, %19) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %139 = "torch.aten.permute"(%137, %138) : (!torch.vtensor<[?,1,2,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,2,?,4],f32>
    %140 = "torch.prim.ListConstruct"(%31, %28, %35, %19) : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %141 = "torch.aten.permute"(%139, %140) : (!torch.vtensor<[1,2,?,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,2,4],f32>
    %142 = "torch.prim.ListConstruct"(%35, %36, %23) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %143 = "torch.aten.view"(%141, %142) : (!torch.vtensor<[1,?,2,4],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,8],f32>
    %144 = "torch.aten.add.Tensor"(%41, %143, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,8],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %145 = "torch.prim.ListConstruct"(%28) : (!torch.int) -> !torch.list<int>
    %146 = "torch.aten.to.dtype"(%144, %5, %32, %32, %30) : (!torch.vtensor<[1,?,8],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,8],f64>
    %147 = "torch.aten.sum.dim_IntList"(%146, %145, %27, %30) : (!torch.vtensor<[1,?,8],f64>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f64>
    %148 = "torch.aten.div.Scalar"(%147, %23) : (!torch.vtensor<[1,?,1],f64>, !torch.int) -> !torch.vtensor<[1,?,1],f64>
    %149 = "torch.aten.sub.Tensor"(%146, %148, %4) : (!torch.vtensor<[1,?,8],f64>, !torch.vtensor<[1,?,1],f64>, !torch.float) -> !torch.vtensor<[1,?,8],f64>
    %150 = "torch.aten.mul.Tensor"(%149, %149) : (!torch.vtensor<[1,?,8],f64>, !torch.vtensor<[1,?,8],f64>) -> !torch.vtensor<[1,?,8],f64>
    %151 = "torch.aten.sum.dim_IntList"(%150, %145, %27, %30) : (!torch.vtensor<[1,?,8],f64>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f64>
    %152 = "torch.aten.div.Scalar"(%151, %23) : (!torch.vtensor<[1,?,1],f64>, !torch.int) -> !torch.vtensor<[1,?,1],f64>
    %153 = "torch.aten.to.dtype"(%152, %3, %32, %32, %30) : (!torch.vtensor<[1,?,1],f64>, !torch.int, !torch.bool, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f32>
    %154 = "torch.aten.sum.dim_IntList"(%144, %145, %27, %30) : (!torch.vtensor<[1,?,8],f32>, !torch.list<int>, !torch.bool, !torch.none) -> !torch.vtensor<[1,?,1],f32>
    %155 = "torch.aten.div.Scalar"(%154, %23) : (!torch.vtensor<[1,?,1],f32>, !torch.int) -> !torch.vtensor<[1,?,1],f32>
    %156 = "torch.aten.add.Scalar"(%153, %26, %35) : (!torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,1],f32>
    %157 = "torch.aten.rsqrt"(%156) : (!torch.vtensor<[1,?,1],f32>) -> !torch.vtensor<[1,?,1],f32>
    %158 = "torch.aten.sub.Tensor"(%144, %155, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,1],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %159 = "torch.aten.mul.Tensor"(%158, %157) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,1],f32>) -> !torch.vtensor<[1,?,8],f32>
    %160 = "torch.aten.mul.Tensor"(%159, %13) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[8],f32>) -> !torch.vtensor<[1,?,8],f32>
    %161 = "torch.aten.add.Tensor"(%160, %12, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[8],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %162 = "torch.prim.ListConstruct"(%35, %31) : (!torch.int, !torch.int) -> !torch.list<int>
    %163 = "torch.aten.permute"(%11, %162) : (!torch.vtensor<[16,8],f32>, !torch.list<int>) -> !torch.vtensor<[8,16],f32>
    %164 = "torch.prim.ListConstruct"(%36, %23) : (!torch.int, !torch.int) -> !torch.list<int>
    %165 = "torch.aten.view"(%161, %164) : (!torch.vtensor<[1,?,8],f32>, !torch.list<int>) -> !torch.vtensor<[?,8],f32>
    %166 = "torch.aten.mm"(%165, %163) : (!torch.vtensor<[?,8],f32>, !torch.vtensor<[8,16],f32>) -> !torch.vtensor<[?,16],f32>
    %167 = "torch.prim.ListConstruct"(%35, %36, %10) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %168 = "torch.aten.view"(%166, %167) : (!torch.vtensor<[?,16],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,16],f32>
    %169 = "torch.aten.sigmoid"(%168) : (!torch.vtensor<[1,?,16],f32>) -> !torch.vtensor<[1,?,16],f32>
    %170 = "torch.aten.mul.Tensor"(%168, %169) : (!torch.vtensor<[1,?,16],f32>, !torch.vtensor<[1,?,16],f32>) -> !torch.vtensor<[1,?,16],f32>
    %171 = "torch.prim.ListConstruct"(%36, %10) : (!torch.int, !torch.int) -> !torch.list<int>
    %172 = "torch.aten.view"(%170, %171) : (!torch.vtensor<[1,?,16],f32>, !torch.list<int>) -> !torch.vtensor<[?,16],f32>
    %173 = "torch.prim.ListConstruct"(%35, %31) : (!torch.int, !torch.int) -> !torch.list<int>
    %174 = "torch.aten.permute"(%9, %173) : (!torch.vtensor<[8,16],f32>, !torch.list<int>) -> !torch.vtensor<[16,8],f32>
    %175 = "torch.aten.mm"(%172, %174) : (!torch.vtensor<[?,16],f32>, !torch.vtensor<[16,8],f32>) -> !torch.vtensor<[?,8],f32>
    %176 = "torch.aten.mul.Scalar"(%175, %35) : (!torch.vtensor<[?,8],f32>, !torch.int) -> !torch.vtensor<[?,8],f32>
    %177 = "torch.aten.mul.Scalar"(%8, %35) : (!torch.vtensor<[8],f32>, !torch.int) -> !torch.vtensor<[8],f32>
    %178 = "torch.aten.add.Tensor"(%176, %177, %35) : (!torch.vtensor<[?,8],f32>, !torch.vtensor<[8],f32>, !torch.int) -> !torch.vtensor<[?,8],f32>
    %179 = "torch.prim.ListConstruct"(%35, %36, %23) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %180 = "torch.aten.view"(%178, %179) : (!torch.vtensor<[?,8],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,8],f32>
    %181 = "torch.aten.add.Tensor"(%144, %180, %35) : (!torch.vtensor<[1,?,8],f32>, !torch.vtensor<[1,?,8],f32>, !torch.int) -> !torch.vtensor<[1,?,8],f32>
    %182 = "torch.prim.ListConstruct"(%35, %31) : (!torch.int, !torch.int) -> !torch.list<int>
    %183 = "torch.aten.permute"(%7, %182) : (!torch.vtensor<[32,8],f32>, !torch.list<int>) -> !torch.vtensor<[8,32],f32>
    %184 = "torch.prim.ListConstruct"(%36, %23) : (!torch.int, !torch.int) -> !torch.list<int>
    %185 = "torch.aten.view"(%181, %184) : (!torch.vtensor<[1,?,8],f32>, !torch.list<int>) -> !torch.vtensor<[?,8],f32>
    %186 = "torch.aten.mm"(%185, %183) : (!torch.vtensor<[?,8],f32>, !torch.vtensor<[8,32],f32>) -> !torch.vtensor<[?,32],f32>
    %187 = "torch.prim.ListConstruct"(%35, %36, %6) : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
    %188 = "torch.aten.view"(%186, %187) : (!torch.vtensor<[?,32],f32>, !torch.list<int>) -> !torch.vtensor<[1,?,32],f32>
    "func.return"(%188) : (!torch.vtensor<[1,?,32],f32>) -> ()
  }) : () -> ()
}) : () -> ()

{-#
  dialect_resources: {
    builtin: {
      torch_tensor_32_8_torch.float32_1: "0x04000000000000BF0000003F000060BF00000000000040BF0000403F000040BF000020BF0000C03E0000C03E0000203F0000003F000080BF0000C0BE000080BE000040BF000020BF0000003E0000C0BE0000803F000020BF000000BF000020BF00000000000080BF0000803E0000003F0000803F000080BF0000C0BE000080BE0000803F000020BF0000C0BE000000BE000000BF0000C03E0000403F0000C03E0000803F000080BE0000403F0000003F0000803E000020BF000040BF0000803E0000C0BE0000C0BE000000BE0000803E0000803F0000603F0000803F0000003E000000BF0000C0BE000000BF000040BF0000403F0000C03E000020BF000020BF000000BF0000803E0000C03E000000BF0000003E0000003F000060BF0000C0BE0000803F00000000000020BF0000C0BE0000C0BE0000003E000000BE0000003E0000803E000020BF000000BE0000803E000080BF000080BF000040BF0000203F0000C03E0000803F000080BE0000C0BE000020BF0000003E0000803F000060BF000080BF0000C0BE0000C0BE000080BE000000BF000000000000003F0000C0BE000000BF000080BF000080BE0000C03E0000803F0000603F0000003F000000BE000080BF0000003F0000003F000060BF000000BF000000000000003F000060BF0000803E0000403F000000BE000020BF000040BF0000003F0000403F0000C03E0000803E000000BF0000003F0000C0BE0000003E0000803F0000603F000080BE0000803E000060BF0000003E0000803F0000803E0000603F000060BF000080BE0000003E000060BF0000C0BE0000803E0000C0BE0000C03E0000403F000000BE0000C0BE000040BF000000BF000000000000C0BE0000C03E0000403F000000BF0000803F0000203F000080BE000000BF000000BF0000003E0000C0BE0000603F0000C0BE000080BF000000BF000040BF000080BF000040BF000060BF0000603F0000C0BE0000803E0000203F000020BF000080BE0000403F0000003F0000003E000020BF0000203F0000203F0000003F0000603F0000C03E000000000000C03E000080BF000040BF0000803E0000403F0000003E0000403F000080BF0000803F000020BF0000803E0000603F0000803F000040BF000080BE000060BF0000403F0000603F000000000000C03E0000803F000000BE0000003E0000603F000080BF000000BE000000BF000040BF0000803F0000003E000020BF000000BF0000003F0000003E000000BF0000003E0000203F000020BF0000803F000080BF000040BF0000403F000040BF000080BE0000603F0000803F0000603F0000C0BE0000C03E000000BE000000BE0000603F000000BF000080BF0000203F0000603F000080BF000000BF0000203F000040BF000080BE000000BF000020BF000080BF0000C0BE000000BF",
      torch_tensor_8_torch.float32_4: "0x040000000000C0BE0000C03E000080BF000080BE000000BF0000C03E0000C03E0000C0BE",
      torch_tensor_8_16_torch.float32: "0x04000000000000BE000020BF0000803E0000403F0000203F000000BE0000603F0000C03E000080BE000040BF0000203F000000BF000020BF000000BE0000C0BE0000803F0000C0BE0000603F0000803F000080BF0000003E0000C0BE0000003F0000003E0000C0BE0000603F0000C0BE000040BF000040BF000080BF000000BE000000000000003F000060BF0000003F0000C0BE000060BF000040BF000000000000403F0000003F000000BF0000803E0000603F000020BF000080BF000080BF0000003E000080BE000000BF000000BF000000000000203F000000BF0000003E0000C03E0000203F000080BF0000C0BE0000803E0000803F000080BE00000000000080BE0000803F000000BE0000203F0000C03E000040BF0000603F000040BF0000003E0000C0BE000000BE000040BF0000603F0000203F000080BF000020BF000060BF0000603F0000403F000060BF0000C0BE0000803E000060BF0000803F0000803F000000BF000080BF0000003F0000003F000000BF0000003F000020BF00000000000040BF0000603F00000000000080BE000000BE0000203F0000C03E000020BF000080BF0000403F000060BF0000803E0000803F0000603F000080BF0000003E0000003F000000BF0000403F000000BF0000C0BE000000BE000080BF000020BF0000C03E0000003F000060BF0000003E0000603F0000403F0000C0BE0000C03E",
      torch_tensor_16_8_torch.float32: "0x04000000000080BE0000003F0000003E0000803E000000BF0000803F000000BE000040BF0000203F0000403F0000C0BE0000C03E000000000000003E000040BF0000003F000080BE000060BF000060BF0000603F0000C0BE0000803F0000C03E000000BE000000BE0000C03E000000000000003E000080BE0000203F0000603F000000BE000020BF000000BF000040BF000080BE000000BF000040BF000000BF0000203F000020BF0000203F000080BF000080BF0000C0BE000020BF0000603F000040BF0000003E000080BE0000C0BE0000403F0000403F000060BF0000003F000080BF0000803E000000BE0000803E000000BF0000803F0000803F0000C03E000020BF0000803F0000003E0000003E0000403F0000803F0000203F000000BF000080BE000060BF0000203F0000203F0000003E000000BF0000C03E000060BF000000000000403F0000003E000000000000003E0000603F000040BF0000203F0000803E0000003E000080BF0000003F0000603F0000803F0000803E00000000000000000000803E000020BF0000803F000000BE0000403F000000BF000000BF000000BF000080BE000040BF0000803F0000603F000000BF00000000000000BF0000C03E000000BF0000203F000080BF0000C03E0000003F0000C0BE000040BF000020BF000020BF000080BE000080BF000080BF0000003E0000403F0000603F0000C0BE",
      torch_tensor_8_torch.float32_3: "0x04000000000000BF0000003F0000603F000060BF000080BF0000C03E000060BF0000803F",
      torch_tensor_8_torch.float32_2: "0x040000000000803E000020BF000000000000003F0000C03E0000003E0000803F0000203F",
      torch_tensor_24_torch.float32: "0x040000000000203F0000403F0000803E0000003F000040BF000000000000803F0000403F0000003E00000000000060BF0000003F000040BF000000BF0000003F0000C0BE0000603F00000000000040BF000080BE000000BF000080BF000080BF00000000",
      torch_tensor_24_8_torch.float32: "0x040000000000003F000080BE000000BE000040BF0000403F0000003F000020BF00000000000080BF000080BF000080BE0000003F0000C0BE000000BE0000C03E000080BE0000403F0000803F0000C03E000000BE00000000000000000000803E000000000000603F000000BF0000C03E0000203F0000C03E0000803E0000003F000080BF0000403F0000803F000080BF0000203F0000803F0000803F000080BE0000603F000020BF0000803E0000003F000040BF000000000000003E0000C03E0000003F0000000000000000000000BF0000803F0000203F0000803E0000203F000000BF0000003E000020BF0000403F000000BE0000603F0000203F000080BE000080BE0000203F0000403F0000803E000040BF000020BF000000BF000080BF0000603F00000000000000000000203F0000C03E000000BE000000BE0000003F00000000000020BF000040BF0000403F000080BE000020BF0000003F000000BE000040BF000080BF000000000000803F0000003E000000BE000000BF000080BF0000803E0000003E000080BE000000BE0000803E00000000000080BE0000C0BE0000803F00000000000060BF0000C03E0000003F0000203F000020BF0000003E0000C0BE0000803F0000C0BE000040BF000020BF0000403F000080BF0000203F0000803F000000000000003E0000003F0000203F000020BF0000003E000080BF000000BE0000803E0000403F00000000000080BE0000803F000020BF0000803E0000C03E0000403F0000C03E0000C03E000020BF0000003F000080BF000020BF000040BF0000003F0000803E0000003E0000403F000040BF0000403F000020BF000000BF0000203F000040BF000040BF0000803E000060BF0000803E0000803E0000003F000080BE000060BF000080BF0000603F000080BF000060BF00000000000000BF0000603F0000003F000000BE0000C0BE000000BE0000003F0000203F000000BE000060BF0000803E0000003E0000003E00000000000020BF0000203F000000BF0000803E0000003E0000003E000080BE0000C03E0000003E0000203F00000000",
      torch_tensor_8_torch.float32_1: "0x04000000000020BF000080BE000040BF0000803F0000003E000000BF0000003E0000603F",
      torch_tensor_8_torch.float32: "0x040000000000403F000000BE000000BF000000000000403F0000003F0000203F0000603F",
      torch_tensor_64_8_torch.float32: "0x040000000000203F000060BF0000803F0000603F000080BF000000BE0000203F00000000000080BE00000000000080BF000060BF000060BF000080BE000080BF0000C0BE0000403F000080BE000000BF000000BF0000403F000080BF0000C03E000080BE000000BE0000403F0000003F0000C0BE000000BE000000000000C0BE000060BF0000803F000000BE0000203F0000C03E0000C0BE0000603F0000803F000060BF0000C0BE000080BE0000803F0000003F000040BF0000003E0000403F0000203F0000803E0000803E000060BF0000003F000020BF0000003F000040BF0000803E0000203F000080BF000000BE000020BF000000BF0000C0BE0000803E0000C03E000000BE0000C03E0000003F000080BF0000603F0000803E0000203F00000000000020BF0000803E000020BF000060BF0000003F000000BF000080BE000000BE000060BF000000BF000060BF0000803F0000803F0000803E0000403F0000003E000020BF000080BF000020BF0000403F000000BF000000000000003F000040BF00000000000080BF0000003E0000603F000060BF000080BE000000BF0000603F000000BE0000003E000080BF0000C0BE0000603F000000BF000080BE000000BE0000C03E000080BF000080BF0000803F000000BE0000203F000080BF000020BF0000803F000040BF0000003E000040BF000080BE000060BF0000803E000000BF000080BF0000803E0000C03E0000603F0000603F000080BF000000BF0000C0BE0000003F000020BF0000803F000060BF0000803E0000203F0000603F000040BF000000BE0000003F000080BF000060BF0000803F000000BE000080BE0000203F0000203F000040BF000060BF000000BE0000803E0000003E0000C0BE0000C0BE0000C03E000000BE000000BF000040BF0000203F000080BE000060BF000040BF0000C0BE000000000000203F0000203F0000603F0000403F0000803F000000000000203F0000003E0000803E000000BE0000803E000000000000403F000080BE000020BF000080BF000000BF0000003E0000803F000040BF000000BF0000203F0000803F0000003F000020BF0000803F0000003E00000000000080BE0000C03E0000403F0000603F0000803F000020BF0000C0BE000040BF0000003F0000403F0000003F0000803E0000003F0000003F000060BF000060BF0000003F000080BE0000203F000000000000C0BE0000003F0000003E0000403F000020BF000040BF000060BF0000403F000080BF0000C03E000000BE000000BE000000BE0000C03E0000C03E000080BF000080BE0000803F0000C03E0000403F0000403F000080BF0000003E000080BE0000803F0000003E00000000000060BF000000BE0000C03E0000203F000060BF0000003E000080BF0000C03E0000003E0000C0BE0000C0BE0000003E000000BE000000BF0000603F0000003E0000803E000080BE000000BE0000803F0000803E000020BF0000803F000000BE0000803E000040BF0000203F0000C0BE0000803F000060BF0000203F000000BF000060BF0000803E000000000000203F0000C0BE0000803F0000003F000000000000003F000080BE000060BF000040BF000060BF000080BE0000C0BE000000000000603F0000803F0000803F000000BE000080BF0000803F0000C0BE0000403F0000203F000000BF0000C0BE000000BF000000000000603F0000C0BE0000C0BE00000000000000000000203F00000000000080BF0000803E000020BF000060BF0000003E0000003F0000003E000000BF000020BF0000C0BE0000803E0000403F0000003E000000BF0000803E000020BF0000C0BE0000403F0000803E000080BE000020BF0000403F00000000000000BE000000BE0000003E00000000000080BF0000403F000060BF0000003E000000BF000000BE0000403F0000003F000080BF0000403F000000BF000080BF0000403F0000803E000060BF000000000000803F000080BF00000000000000BE000040BF0000803F0000803F0000403F000080BE000020BF000040BF0000003E000080BE0000603F000000BE0000603F0000803F0000803F0000803E0000603F000040BF0000603F000080BE0000003E0000803F0000C03E000000BF000080BE0000003F0000003E0000003F000000BE0000203F0000003E0000803E0000003F0000603F000080BE000000BE0000C0BE0000603F000060BF0000403F000000BE0000203F0000003F0000803F0000003F00000000000080BF000080BF0000803F000060BF000080BF0000C0BE000060BF0000003F0000403F000000000000C0BE000040BF000040BF000040BF0000603F0000803E0000803F000080BF0000C0BE0000203F000020BF0000803E0000003F0000803E0000003F0000603F0000803E0000803F0000003F000020BF0000203F0000803F000060BF000000BF000080BF000080BE000000000000203F0000403F0000203F0000603F000000000000C03E000000000000803E0000203F0000203F0000203F0000803F000000BF000080BE0000203F000000000000003E0000403F0000003E000000BE000060BF0000803E0000003F0000003E0000003E0000203F0000803E000040BF0000603F00000000000000BE0000C03E0000003E0000403F000000BF0000803F0000C03E0000803E000000BF000040BF000000BE0000603F0000403F0000C03E000040BF0000003E0000C0BE0000403F0000003E000020BF000000000000803E000000000000003E0000003F000080BE0000803F0000C0BE0000C0BE000020BF0000003F000020BF000040BF000040BF0000C0BE00000000000000BF000000BF0000603F0000C03E",
      torch_tensor_32_8_torch.float32: "0x04000000000000BE000020BF0000003F0000803F000040BF000080BF0000803F0000803E000080BE0000C0BE0000803F0000803E0000203F0000003E00000000000000BE000020BF000080BE0000803F0000C03E000080BF0000803E0000603F0000C0BE0000003E000040BF000000BE000000000000C03E0000403F000080BF0000C0BE000020BF0000803F0000C03E000000BF0000803F000040BF0000803F000060BF000000BE000000BF0000C0BE000000BF0000803F000080BE000080BF000000000000203F0000803E0000203F0000203F000020BF0000403F0000003E0000603F000080BE0000003E000040BF0000203F000020BF000080BE0000C0BE0000803E000000BF000040BF0000C03E0000C03E000060BF0000203F0000003E000020BF0000000000000000000000BE000060BF0000803F0000003F000000BF0000603F00000000000040BF0000003F000000BE0000803E0000403F000040BF000040BF0000403F0000C03E000020BF000000000000003F000000BE000060BF0000803F000080BF0000603F000000000000003F000000000000403F0000803E0000403F000000BF0000C03E000080BF0000C0BE0000603F0000203F000000BF000020BF000000BF0000203F0000403F0000603F000020BF0000C0BE0000003F0000803F0000C03E000020BF0000803F0000803E000000BE0000C03E0000803F000080BE000060BF0000003E0000C0BE000060BF0000003F0000C0BE0000203F000080BE000040BF000000000000003E0000003E00000000000000000000C0BE000000BF0000003F000040BF0000803E0000003E000080BE000020BF000000BF000000BE000000000000403F0000C0BE000000BE0000C03E000000BE000000BE000000BE0000203F0000803F0000C03E000060BF000060BF000040BF000040BF0000C0BE00000000000040BF0000403F0000603F000080BF000020BF0000403F0000C0BE000060BF000000BE000000BE000040BF0000C03E000020BF0000C03E000080BE0000C03E0000C03E0000C03E000000000000803F000040BF0000203F0000003E000020BF0000003E0000403F0000803F000000BE0000C0BE0000003F000060BF000040BF0000003F0000003F000080BE0000803E000000BF0000603F000000BE0000803E000020BF0000803F000080BF000000000000603F0000803F0000803E0000003F0000803E000040BF000060BF0000C03E0000C03E0000203F000000BF0000003E000000BF0000403F0000803F000060BF000080BE0000803F0000603F000020BF0000C03E000000BF0000403F000080BF0000803F00000000000000000000603F0000803E00000000000000000000C0BE0000203F000020BF0000C03E0000403F00000000000020BF000040BF0000203F000000BF000020BF000000BF"
    }
  }
#-}
